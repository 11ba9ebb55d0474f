// The objects that the plane may serve, by tenant and path.
//
// 1. An object is found from `objects_add` until `objects_withdraw`, or until `objects_distrust`.
// 2. Its bytes are used by readers only, each between `objects_find` and `objects_leave`. They are let go of by the event
//    loop's thread, after it was withdrawn and its last reader has left.
// 3. Its number is never used again.
//
// objects_find, _distrust and _leave may be called from any thread, the others from the event loop's.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "block_digest.h"
#include "head.h"

struct extent {
    const uint8_t *at;
    uint64_t nbytes;
};

struct object {
    uint64_t number;
    uint64_t nbytes;
    const uint64_t *blocks; // the crc64nvme of each BLOCK_NBYTES
    const struct extent *extents;
    size_t extent_count;
    struct text head;      // the header lines that describe it
    struct text checksums; // those that the checksum mode adds
    void *views;           // what the event loop's thread holds the bytes by

    // The table's own, under its lock.
    struct text path;
    uint64_t hash;
    uint32_t tenant, readers;
    int findable, withdrawn, used;
    struct object *next_by_path, *next_by_number;
};

struct numbers {
    uint64_t *at;
    size_t count, room;
};

struct objects;

// An empty table; `signal_fd` is an eventfd that is written to when `objects_released` or `objects_corrupt` has something.
// NULL without memory.
struct objects *objects_new(int signal_fd, uint64_t seed);

// There must be no readers.
void objects_free(struct objects *objects, void (*let_go)(struct object *));

// Take over an object whose fields outside of the table's own are set, its strings and arrays being one allocation with it.
// Its number; 0 where the tenant has an object of that path already, or without memory.
uint64_t objects_add(struct objects *objects, struct object *object, uint32_t tenant, struct text path);

// The object of a path, with a reader more, noted as used if `uses`; NULL without one.
struct object *objects_find(struct objects *objects, uint32_t tenant, struct text path, int uses);

// A reader is done.
void objects_leave(struct objects *objects, struct object *object);

// The bytes of an object that is being read are not its own: it is found no more.
void objects_distrust(struct objects *objects, struct object *object);

// Let nobody find an object any more. It, taken out, when nobody reads it, so that it is the caller's to free; else NULL,
// with `*known` telling whether there is one, and `objects_released` will have it.
struct object *objects_withdraw(struct objects *objects, uint64_t number, int *known);

// How many readers an object has.
uint32_t objects_readers(struct objects *objects, uint64_t number);

// The withdrawn objects whose last reader has left since the last call, linked by next_by_path; the caller's to free.
struct object *objects_released(struct objects *objects);

// The numbers of the objects that were used, or distrusted, since the last call: the caller's to free.
struct numbers objects_used(struct objects *objects);
struct numbers objects_corrupt(struct objects *objects);

size_t objects_count(struct objects *objects);
