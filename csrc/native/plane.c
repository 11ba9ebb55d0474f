#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "parse.h"
#include "plane_inside.h"

#define PLANE_THREAD_NAME "kvgate-plane" // as top -H and /proc show it
#define EVENTS 64
#define SWEEP_MS 250
#define MAX_SOCKETS (1 << 24)

uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

// --- requests --------------------------------------------------------------------------------------------------------

// Whether a host names a bucket of ours, being below one of our domains.
static int names_bucket(const struct plane_options *options, struct text host)
{
    if (!options->domain_count)
        return 0;
    uint32_t digits = 0;
    while (digits < host.len && host.at[host.len - 1 - digits] >= '0' && host.at[host.len - 1 - digits] <= '9')
        digits++;
    if (digits < host.len && host.at[host.len - 1 - digits] == ':')
        host.len -= digits + 1;
    for (size_t i = 0; i < options->domain_count; i++) {
        struct text domain = options->domains[i];
        if (host.len > domain.len && host.at[host.len - domain.len - 1] == '.' &&
            text_is_nocase((struct text){host.at + host.len - domain.len, domain.len}, domain.at, domain.len))
            return 1;
    }
    return 0;
}

// Begin to answer a request whose head are the first `head_nbytes` of what has been read. UNSERVED: it is not for us.
static enum progress begin(struct thread *thread, struct connection *connection, const char *data, size_t head_nbytes,
                           size_t nbytes)
{
    struct head head;
    if (!parse_head(&head, data, head_nbytes) || names_bucket(&thread->plane->options, head.values[H_HOST]))
        return UNSERVED;
    int64_t now_s = (int64_t)(clock_ns(CLOCK_REALTIME) / SECOND_NS);
    int tenant = authenticate(thread->keys, &head, now_s);
    if (tenant < 0)
        return UNSERVED;
    if (head.method == PUT)
        return begin_put(thread, connection, &head, (uint32_t)tenant, data, nbytes);
    return begin_answer(thread, connection, &head, (uint32_t)tenant, now_s);
}

// Answer the requests whose heads have come; `data` is all that has been read and not been answered.
static void serve(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    while (nbytes) {
        const char *blank = memmem(data, nbytes, "\r\n\r\n", 4);
        size_t head_nbytes = blank ? (size_t)(blank - data) : nbytes;
        if (head_nbytes > thread->plane->options.max_header || (!blank && !may_begin_head(data, nbytes))) {
            hand_over(thread, connection, data, nbytes);
            return;
        }
        if (!blank)
            break;
        head_nbytes += 4;
        switch (begin(thread, connection, data, head_nbytes, nbytes)) {
        case UNSERVED:
            hand_over(thread, connection, data, nbytes);
            return;
        case ENDED:
        case ASKED:
            return;
        case WAITS:
            if (wait_for_room(thread, connection))
                keep(thread, connection, data + head_nbytes, nbytes - head_nbytes);
            return;
        case DONE:
            if (!end_answer(thread, connection))
                return;
        }
        data += head_nbytes;
        nbytes -= head_nbytes;
    }
    keep(thread, connection, data, nbytes);
}

// Take what was kept to the front of the thread's scratch memory; how many bytes that is.
static size_t take_kept(struct thread *thread, struct connection *connection)
{
    size_t nbytes = connection->kept_nbytes;
    if (nbytes)
        memcpy(thread->scratch, connection->kept, nbytes);
    free(connection->kept);
    connection->kept = NULL;
    connection->kept_nbytes = 0;
    return nbytes;
}

static void read_requests(struct thread *thread, struct connection *connection)
{
    size_t kept = take_kept(thread, connection);
    ssize_t came;
    do
        came = recv(connection->fd, thread->scratch + kept, READ_NBYTES, MSG_DONTWAIT);
    while (came < 0 && errno == EINTR);
    if (came < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        keep(thread, connection, thread->scratch, kept);
        return;
    }
    if (came <= 0) {
        close_connection(thread, connection, 0);
        return;
    }
    if (!kept)
        connection->active_at_ns = thread->now_ns;
    serve(thread, connection, thread->scratch, kept + (size_t)came);
}

static void go_on(struct thread *thread, struct connection *connection)
{
    if (connection->state == WAITING) {
        read_requests(thread, connection);
        return;
    }
    if (connection->state == RECEIVING) {
        receive_body(thread, connection);
        return;
    }
    switch (send_answer(thread, connection)) {
    case UNSERVED: // nothing has left yet, and what was asked is not known any more
        close_connection(thread, connection, 0);
        return;
    case ENDED:
    case WAITS:
    case ASKED:
        return;
    case DONE:
        if (!end_answer(thread, connection))
            return;
    }
    watch(thread, connection, EPOLLIN);
    size_t kept = take_kept(thread, connection);
    serve(thread, connection, thread->scratch, kept);
}

// --- threads ---------------------------------------------------------------------------------------------------------

// Seconds since a moment, which for what has just been adopted is later than a thread's own now.
static double since_s(uint64_t now_ns, uint64_t moment_ns)
{
    return (double)(int64_t)(now_ns - moment_ns) / (double)SECOND_NS;
}

// Whether a body goes too slowly, as kvgate/server/http1/transfer.py has it.
static int is_late(const struct plane_options *options, const struct connection *connection, uint64_t now_ns)
{
    if (since_s(now_ns, connection->moved_ns) > options->body_timeout_s)
        return 1;
    if (!connection->put && connection->start == connection->stop) // no body, and perhaps one before it that took long
        return 0;
    double due = since_s(now_ns, connection->began_ns) - options->body_timeout_s;
    uint64_t moved = connection->put ? connection->put->received : connection->at - connection->start;
    return (double)moved < due * options->min_rate;
}

// Whether a connection waits for something for too long. `*what` is that.
static int is_overdue(const struct plane_options *options, const struct connection *connection, uint64_t now_ns,
                      enum late *what)
{
    *what = connection->state != WAITING ? LATE_BODY : connection->kept_nbytes ? LATE_HEAD : LATE_REQUEST;
    if (*what == LATE_BODY)
        return is_late(options, connection, now_ns);
    double limit_s = *what == LATE_HEAD ? options->header_timeout_s : options->idle_timeout_s;
    return since_s(now_ns, connection->active_at_ns) > limit_s;
}

// End what takes too long, and when the plane drains what is idle.
static void sweep(struct thread *thread)
{
    int draining = __atomic_load_n(&thread->plane->draining, __ATOMIC_RELAXED);
    pthread_mutex_lock(&thread->lock);
    for (struct connection *connection = thread->connections, *next; connection; connection = next) {
        next = connection->next;
        if (connection->state == ASKING)
            continue;
        enum late what;
        int late = is_overdue(&thread->plane->options, connection, thread->now_ns, &what);
        if (late)
            count(&thread->counts.late[what], 1);
        if (late && connection->state == RECEIVING)
            end_body(thread, connection, BODY_LATE);
        else if (late || (draining && what == LATE_REQUEST))
            close_connection(thread, connection, 1);
    }
    pthread_mutex_unlock(&thread->lock);
}

static void *run(void *argument)
{
    struct thread *thread = argument;
    struct plane *plane = thread->plane;
    uint64_t swept_ns = clock_ns(CLOCK_MONOTONIC), woken;
    while (!__atomic_load_n(&plane->stopping, __ATOMIC_ACQUIRE)) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(thread->epoll_fd, events, EVENTS, SWEEP_MS), wake = 0;
        for (int i = 0; i < ready; i++) {
            thread->now_ns = clock_ns(CLOCK_MONOTONIC);
            if (events[i].data.ptr)
                go_on(thread, events[i].data.ptr);
            else
                wake = eventfd_read(thread->wake_fd, &woken) == 0;
        }
        thread->now_ns = clock_ns(CLOCK_MONOTONIC);
        if (wake || thread->now_ns - swept_ns > SWEEP_MS * (SECOND_NS / 1000)) {
            sweep(thread);
            swept_ns = thread->now_ns;
        }
    }
    return NULL;
}

static int start_thread(struct thread *thread)
{
    struct epoll_event event = {.events = EPOLLIN};
    thread->date.second = -1;
    thread->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    thread->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    thread->scratch = malloc(thread->plane->options.max_header + 4 + READ_NBYTES);
    thread->keys = signing_keys_new(thread->plane->options.credentials);
    if (!thread->scratch || !thread->keys) {
        errno = ENOMEM;
        return -1;
    }
    if (thread->epoll_fd < 0 || thread->wake_fd < 0 ||
        epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, thread->wake_fd, &event))
        return -1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); // signals are Python's
    errno = pthread_create(&thread->id, NULL, run, thread);
    thread->started = !errno;
    if (thread->started)
        pthread_setname_np(thread->id, PLANE_THREAD_NAME);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return thread->started ? 0 : -1;
}

struct plane *plane_new(const struct plane_options *options)
{
    struct plane *plane = calloc(1, sizeof *plane + options->threads * sizeof *plane->threads);
    if (!plane)
        return NULL;
    plane->options = *options;
    plane->request_id = options->first_request_id;
    plane->handed_end = &plane->handed;
    plane->asked.end = &plane->asked.first;
    plane->received.end = &plane->received.first;
    plane->date.second = -1;
    pthread_mutex_init(&plane->news_lock, NULL);
    for (unsigned i = 0; i < options->threads; i++) {
        plane->threads[i] = (struct thread){.plane = plane, .epoll_fd = -1, .wake_fd = -1};
        pthread_mutex_init(&plane->threads[i].lock, NULL);
    }
    plane->signal_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    plane->objects = plane->signal_fd < 0 ? NULL : objects_new(plane->signal_fd, options->seed);
    int failed = !plane->objects;
    for (unsigned i = 0; !failed && i < options->threads; i++)
        failed = start_thread(&plane->threads[i]);
    if (failed) {
        int why = errno;
        plane_stop(plane);
        plane_free(plane, NULL, NULL);
        errno = why;
        return NULL;
    }
    return plane;
}

int plane_fd(struct plane *plane)
{
    return plane->signal_fd;
}

struct objects *plane_objects(struct plane *plane)
{
    return plane->objects;
}

static size_t connections_of(struct thread *thread)
{
    return __atomic_load_n(&thread->connection_count, __ATOMIC_RELAXED);
}

// Room in `asking` for a socket. Whether there is memory for it.
static int make_asking_room(struct plane *plane, int fd)
{
    if (fd < 0 || fd >= MAX_SOCKETS)
        return 0;
    if ((size_t)fd < plane->asking_room)
        return 1;
    size_t room = 2 * (size_t)fd + 64;
    struct put **asking = realloc(plane->asking, room * sizeof *asking);
    if (!asking)
        return 0;
    memset(asking + plane->asking_room, 0, (room - plane->asking_room) * sizeof *asking);
    plane->asking = asking;
    plane->asking_room = room;
    return 1;
}

int plane_adopt(struct plane *plane, int fd, int listener, int exact)
{
    struct thread *thread = &plane->threads[0];
    for (unsigned i = 1; i < plane->options.threads; i++)
        if (connections_of(&plane->threads[i]) < connections_of(thread))
            thread = &plane->threads[i];
    struct connection *connection = make_asking_room(plane, fd) ? calloc(1, sizeof *connection) : NULL;
    if (!connection) {
        errno = ENOMEM;
        return -1;
    }
    connection->thread = thread;
    connection->fd = fd;
    connection->listener = listener;
    connection->exact = exact;
    connection->interest = EPOLLIN;
    connection->active_at_ns = clock_ns(CLOCK_MONOTONIC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    pthread_mutex_lock(&thread->lock);
    connection->next = thread->connections;
    if (connection->next)
        connection->next->previous = connection;
    thread->connections = connection;
    __atomic_store_n(&thread->connection_count, thread->connection_count + 1, __ATOMIC_RELAXED);
    int failed = epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, fd, &event); // from now on it is the thread's
    if (failed) {
        int why = errno;
        unlink_connection(thread, connection);
        free(connection);
        errno = why;
    }
    pthread_mutex_unlock(&thread->lock);
    return failed;
}

struct handed *plane_handed(struct plane *plane)
{
    uint64_t signals;
    eventfd_read(plane->signal_fd, &signals); // before the look, so that what comes after it is told
    pthread_mutex_lock(&plane->news_lock);
    struct handed *handed = plane->handed;
    plane->handed = NULL;
    plane->handed_end = &plane->handed;
    pthread_mutex_unlock(&plane->news_lock);
    return handed;
}

size_t plane_connections(struct plane *plane)
{
    size_t total = 0;
    for (unsigned i = 0; i < plane->options.threads; i++)
        total += connections_of(&plane->threads[i]);
    return total;
}

void plane_counts(struct plane *plane, struct plane_counts *counts)
{
    // A struct of nothing but uint64_t: each is read as a whole.
    uint64_t *sums = (uint64_t *)counts;
    *counts = plane->counts;
    for (unsigned i = 0; i < plane->options.threads; i++) {
        const uint64_t *of_thread = (const uint64_t *)&plane->threads[i].counts;
        for (size_t j = 0; j < sizeof *counts / sizeof *sums; j++)
            sums[j] += __atomic_load_n(&of_thread[j], __ATOMIC_RELAXED);
    }
}

static void wake_threads(struct plane *plane)
{
    for (unsigned i = 0; i < plane->options.threads; i++)
        if (plane->threads[i].started)
            eventfd_write(plane->threads[i].wake_fd, 1);
}

void plane_drain(struct plane *plane)
{
    __atomic_store_n(&plane->draining, 1, __ATOMIC_RELAXED);
    wake_threads(plane);
}

void plane_stop(struct plane *plane)
{
    __atomic_store_n(&plane->stopping, 1, __ATOMIC_RELEASE);
    wake_threads(plane);
    for (unsigned i = 0; i < plane->options.threads; i++) {
        struct thread *thread = &plane->threads[i];
        if (thread->started)
            pthread_join(thread->id, NULL);
        thread->started = 0;
        while (thread->connections)
            close_connection(thread, thread->connections, 0);
    }
}

void plane_free(struct plane *plane, void (*let_go)(struct object *), void (*drop)(void *held))
{
    for (struct handed *handed = plane_handed(plane), *next; handed; handed = next) {
        next = handed->next;
        close(handed->fd);
        free(handed);
    }
    for (struct put *put = plane->ended, *next; put; put = next) {
        next = put->next;
        if (put->held)
            drop(put->held);
        free(put->areas.at);
        free(put);
    }
    for (unsigned i = 0; i < plane->options.threads; i++) {
        struct thread *thread = &plane->threads[i];
        if (thread->epoll_fd >= 0)
            close(thread->epoll_fd);
        if (thread->wake_fd >= 0)
            close(thread->wake_fd);
        if (thread->keys)
            signing_keys_free(thread->keys);
        free(thread->scratch);
        free(thread->answer);
        pthread_mutex_destroy(&thread->lock);
    }
    if (plane->objects)
        objects_free(plane->objects, let_go);
    if (plane->signal_fd >= 0)
        close(plane->signal_fd);
    pthread_mutex_destroy(&plane->news_lock);
    free(plane->asking);
    free(plane);
}
