#include "objects.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define LEAST_ROOM 1024

struct objects {
    pthread_mutex_t lock;
    uint64_t seed, last_number;
    struct object **by_path, **by_number; // `room` chains each, a power of two
    size_t room, count;
    struct object *released;
    struct numbers used, corrupt;
    int signal_fd;
};

// --- hashing ---------------------------------------------------------------------------------------------------------

static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

// Of a path and its tenant; `seed` is secret, so that nobody can choose paths of one chain.
static uint64_t hash_of(uint64_t seed, uint32_t tenant, struct text path)
{
    uint64_t hash = seed ^ ((uint64_t)tenant << 32 | path.len);
    const char *at = path.at;
    size_t left = path.len;
    for (; left; at += left < 8 ? left : 8, left -= left < 8 ? left : 8) {
        uint64_t word = 0;
        memcpy(&word, at, left < 8 ? left : 8);
        hash = mix(hash ^ word ^ 0x9e3779b97f4a7c15u, seed | 1);
    }
    return mix(hash ^ (seed >> 7), 0xd6e8feb86659fd93u);
}

static struct object **path_chain(struct objects *objects, uint64_t hash)
{
    return &objects->by_path[hash & (objects->room - 1)];
}

static struct object **number_chain(struct objects *objects, uint64_t number)
{
    return &objects->by_number[number & (objects->room - 1)];
}

// --- under the lock --------------------------------------------------------------------------------------------------

static struct object **find_path(struct objects *objects, uint64_t hash, uint32_t tenant, struct text path)
{
    struct object **at = path_chain(objects, hash);
    for (; *at; at = &(*at)->next_by_path)
        if ((*at)->hash == hash && (*at)->tenant == tenant && (*at)->path.len == path.len &&
            !memcmp((*at)->path.at, path.at, path.len))
            break;
    return at;
}

static struct object **find_number(struct objects *objects, uint64_t number)
{
    struct object **at = number_chain(objects, number);
    while (*at && (*at)->number != number)
        at = &(*at)->next_by_number;
    return at;
}

static void hide(struct objects *objects, struct object *object)
{
    if (!object->findable)
        return;
    object->findable = 0;
    struct object **at = path_chain(objects, object->hash);
    while (*at != object)
        at = &(*at)->next_by_path;
    *at = object->next_by_path;
}

// Room for twice as many chains; what there was where there is no memory for them.
static void grow(struct objects *objects)
{
    size_t room = objects->room * 2;
    struct object **by_path = calloc(room, sizeof *by_path), **by_number = calloc(room, sizeof *by_number);
    if (!by_path || !by_number) {
        free(by_path);
        free(by_number);
        return;
    }
    for (size_t i = 0; i < objects->room; i++) {
        for (struct object *object = objects->by_number[i], *next; object; object = next) {
            next = object->next_by_number;
            object->next_by_number = by_number[object->number & (room - 1)];
            by_number[object->number & (room - 1)] = object;
        }
        for (struct object *object = objects->by_path[i], *next; object; object = next) {
            next = object->next_by_path;
            object->next_by_path = by_path[object->hash & (room - 1)];
            by_path[object->hash & (room - 1)] = object;
        }
    }
    free(objects->by_path);
    free(objects->by_number);
    objects->by_path = by_path;
    objects->by_number = by_number;
    objects->room = room;
}

static int note(struct numbers *numbers, uint64_t number)
{
    if (numbers->count == numbers->room) {
        size_t room = numbers->room ? numbers->room * 2 : 64;
        uint64_t *at = realloc(numbers->at, room * sizeof *at);
        if (!at)
            return 0;
        numbers->at = at;
        numbers->room = room;
    }
    numbers->at[numbers->count++] = number;
    return 1;
}

static void signal_loop(struct objects *objects)
{
    eventfd_write(objects->signal_fd, 1);
}

// --- the table -------------------------------------------------------------------------------------------------------

struct objects *objects_new(int signal_fd, uint64_t seed)
{
    struct objects *objects = calloc(1, sizeof *objects);
    if (!objects)
        return NULL;
    *objects = (struct objects){.seed = seed, .room = LEAST_ROOM, .signal_fd = signal_fd};
    objects->by_path = calloc(LEAST_ROOM, sizeof *objects->by_path);
    objects->by_number = calloc(LEAST_ROOM, sizeof *objects->by_number);
    if (!objects->by_path || !objects->by_number) {
        free(objects->by_path);
        free(objects->by_number);
        free(objects);
        return NULL;
    }
    pthread_mutex_init(&objects->lock, NULL);
    return objects;
}

void objects_free(struct objects *objects, void (*let_go)(struct object *))
{
    for (size_t i = 0; i < objects->room; i++)
        for (struct object *object = objects->by_number[i], *next; object; object = next) {
            next = object->next_by_number;
            let_go(object);
        }
    for (struct object *object = objects->released, *next; object; object = next) {
        next = object->next_by_path;
        let_go(object);
    }
    free(objects->by_path);
    free(objects->by_number);
    free(objects->used.at);
    free(objects->corrupt.at);
    pthread_mutex_destroy(&objects->lock);
    free(objects);
}

uint64_t objects_add(struct objects *objects, struct object *object, uint32_t tenant, struct text path)
{
    object->path = path;
    object->tenant = tenant;
    object->hash = hash_of(objects->seed, tenant, path);
    object->readers = 0;
    object->withdrawn = object->used = 0;
    pthread_mutex_lock(&objects->lock);
    uint64_t number = 0;
    if (!*find_path(objects, object->hash, tenant, path)) {
        if (objects->count >= objects->room)
            grow(objects);
        number = object->number = ++objects->last_number;
        object->findable = 1;
        struct object **by_path = path_chain(objects, object->hash), **by_number = number_chain(objects, number);
        object->next_by_path = *by_path;
        *by_path = object;
        object->next_by_number = *by_number;
        *by_number = object;
        objects->count++;
    }
    pthread_mutex_unlock(&objects->lock);
    return number;
}

struct object *objects_find(struct objects *objects, uint32_t tenant, struct text path, int uses)
{
    uint64_t hash = hash_of(objects->seed, tenant, path);
    pthread_mutex_lock(&objects->lock);
    struct object *object = *find_path(objects, hash, tenant, path);
    if (object) {
        object->readers++;
        if (uses && !object->used)
            object->used = note(&objects->used, object->number);
    }
    pthread_mutex_unlock(&objects->lock);
    return object;
}

void objects_leave(struct objects *objects, struct object *object)
{
    pthread_mutex_lock(&objects->lock);
    int released = !--object->readers && object->withdrawn;
    if (released) {
        object->next_by_path = objects->released;
        objects->released = object;
    }
    pthread_mutex_unlock(&objects->lock);
    if (released)
        signal_loop(objects);
}

void objects_distrust(struct objects *objects, struct object *object)
{
    pthread_mutex_lock(&objects->lock);
    if (object->findable)
        note(&objects->corrupt, object->number);
    hide(objects, object);
    pthread_mutex_unlock(&objects->lock);
    signal_loop(objects);
}

struct object *objects_withdraw(struct objects *objects, uint64_t number, int *known)
{
    pthread_mutex_lock(&objects->lock);
    struct object **at = find_number(objects, number), *object = *at;
    *known = object != NULL;
    if (object) {
        hide(objects, object);
        *at = object->next_by_number;
        object->withdrawn = 1;
        objects->count--;
        if (object->readers)
            object = NULL;
    }
    pthread_mutex_unlock(&objects->lock);
    return object;
}

uint32_t objects_readers(struct objects *objects, uint64_t number)
{
    pthread_mutex_lock(&objects->lock);
    struct object *object = *find_number(objects, number);
    uint32_t readers = object ? object->readers : 0;
    pthread_mutex_unlock(&objects->lock);
    return readers;
}

struct object *objects_released(struct objects *objects)
{
    pthread_mutex_lock(&objects->lock);
    struct object *released = objects->released;
    objects->released = NULL;
    pthread_mutex_unlock(&objects->lock);
    return released;
}

struct numbers objects_used(struct objects *objects)
{
    pthread_mutex_lock(&objects->lock);
    struct numbers used = objects->used;
    objects->used = (struct numbers){0};
    for (size_t i = 0; i < used.count; i++) {
        struct object *object = *find_number(objects, used.at[i]);
        if (object)
            object->used = 0;
    }
    pthread_mutex_unlock(&objects->lock);
    return used;
}

struct numbers objects_corrupt(struct objects *objects)
{
    pthread_mutex_lock(&objects->lock);
    struct numbers corrupt = objects->corrupt;
    objects->corrupt = (struct numbers){0};
    pthread_mutex_unlock(&objects->lock);
    return corrupt;
}

size_t objects_count(struct objects *objects)
{
    pthread_mutex_lock(&objects->lock);
    size_t count = objects->count;
    pthread_mutex_unlock(&objects->lock);
    return count;
}
