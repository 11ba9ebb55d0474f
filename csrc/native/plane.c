#define _GNU_SOURCE
#include "plane.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"
#include "crc64nvme.h"
#include "parse.h"

#define EVENTS 64
#define READ_NBYTES (16 << 10)    // what is read at once while a head is waited for
#define TURN_NBYTES (8ull << 20)  // after so many bytes of an answer others get their turn
#define AHEAD_NBYTES (4ull << 20) // verified before what they begin with is sent
#define IOV_COUNT 64
#define SWEEP_MS 250
#define SECOND_NS 1000000000ull

struct connection {
    int fd, listener, exact;
    uint32_t interest;
    struct connection *previous, *next;
    uint64_t active_at_ns; // when the last request began to come, or was answered

    char *kept; // what has come and belongs to requests to come
    uint32_t kept_nbytes;

    // The answer under way, while there is an object.
    struct object *object;
    char *head; // the thread's, or allocated once the answer has to wait
    size_t head_nbytes, head_sent;
    uint64_t start, at, stop, verified; // the body up to `at` has left, and up to `verified` may
    size_t extent;                      // that `at` lies in, which begins at `extent_start` of the object
    uint64_t extent_start;
    uint64_t began_ns, moved_ns;
    enum operation operation;
    int partial, closes, head_is_own;
};

struct thread {
    struct plane *plane;
    pthread_t id;
    int started, epoll_fd, wake_fd;
    pthread_mutex_t lock; // of the list of connections
    struct connection *connections;
    size_t connection_count;
    struct signing_keys *keys;
    struct plane_counts counts;
    struct date date;
    char *scratch;
    char *answer;
    size_t answer_room;
    uint64_t now_ns;
};

struct plane {
    struct plane_options options;
    struct objects *objects;
    int signal_fd, stopping, draining;
    uint64_t request_id;
    pthread_mutex_t handed_lock;
    struct handed *handed, **handed_end;
    struct thread threads[];
};

enum progress { DONE, WAITS, ENDED, UNSERVED };

// --- time and counts -------------------------------------------------------------------------------------------------

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

// Of one thread, which alone writes it, for others to read.
static void count(uint64_t *counter, uint64_t amount)
{
    __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
}

static void count_answer(struct thread *thread, const struct connection *connection)
{
    struct plane_counts *counts = &thread->counts;
    uint64_t took_ns = clock_ns(CLOCK_MONOTONIC) - connection->began_ns;
    int bucket = 0;
    while (bucket < LATENCY_BUCKETS && took_ns > thread->plane->options.latency_buckets_ns[bucket])
        bucket++;
    count(&counts->answers[connection->operation][connection->partial], 1);
    count(&counts->latencies[connection->operation][bucket], 1);
    count(&counts->nanoseconds[connection->operation], took_ns);
}

// --- connections -----------------------------------------------------------------------------------------------------

static void unlink_connection(struct thread *thread, struct connection *connection)
{
    if (connection->next)
        connection->next->previous = connection->previous;
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        thread->connections = connection->next;
    __atomic_store_n(&thread->connection_count, thread->connection_count - 1, __ATOMIC_RELAXED);
}

// Give up what the connection holds besides its socket.
static void forget_connection(struct thread *thread, struct connection *connection, int locked)
{
    if (connection->object) {
        count_answer(thread, connection);
        objects_leave(thread->plane->objects, connection->object);
    }
    if (connection->head_is_own)
        free(connection->head);
    if (!locked)
        pthread_mutex_lock(&thread->lock);
    unlink_connection(thread, connection);
    if (!locked)
        pthread_mutex_unlock(&thread->lock);
    free(connection->kept);
    free(connection);
}

// End a connection; in the middle of an answer by a reset, so that nobody takes it for whole.
static void close_connection(struct thread *thread, struct connection *connection, int locked)
{
    if (connection->object)
        setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    int fd = connection->fd;
    forget_connection(thread, connection, locked);
    close(fd);
}

static void watch(struct thread *thread, struct connection *connection, uint32_t interest)
{
    if (connection->interest == interest)
        return;
    connection->interest = interest;
    struct epoll_event event = {.events = interest, .data.ptr = connection};
    epoll_ctl(thread->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

// Let Python have a connection, of which these bytes have been read and nothing of an answer has been sent.
static void hand_over(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    struct plane *plane = thread->plane;
    struct handed *handed = malloc(sizeof *handed + nbytes);
    if (!handed) {
        close_connection(thread, connection, 0);
        return;
    }
    *handed = (struct handed){.fd = connection->fd, .listener = connection->listener, .nbytes = (uint32_t)nbytes};
    memcpy(handed->received, data, nbytes);
    epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    forget_connection(thread, connection, 0);
    pthread_mutex_lock(&plane->handed_lock);
    int first = !plane->handed;
    *plane->handed_end = handed;
    plane->handed_end = &handed->next;
    pthread_mutex_unlock(&plane->handed_lock);
    if (first)
        eventfd_write(plane->signal_fd, 1);
}

// Keep bytes for later. Whether there was memory for them; if not, the connection is closed.
static int keep(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    if (!nbytes)
        return 1;
    if (!connection->kept && !(connection->kept = malloc(nbytes))) {
        close_connection(thread, connection, 0);
        return 0;
    }
    memcpy(connection->kept, data, nbytes);
    connection->kept_nbytes = (uint32_t)nbytes;
    return 1;
}

// --- answers ---------------------------------------------------------------------------------------------------------

// Whether the bytes [start, stop) of an object, one block of it, are those that its digest was taken of.
static int is_good(const struct object *object, uint64_t start, uint64_t stop)
{
    uint64_t digest = 0, begins = 0, at = start;
    for (size_t i = 0; i < object->extent_count && at < stop; begins += object->extents[i++].nbytes) {
        const struct extent *extent = &object->extents[i];
        if (at >= begins + extent->nbytes)
            continue;
        uint64_t nbytes = begins + extent->nbytes < stop ? begins + extent->nbytes - at : stop - at;
        digest = kvgate_crc64nvme(digest, extent->at + (at - begins), nbytes);
        at += nbytes;
    }
    return at == stop && digest == object->blocks[start / BLOCK_NBYTES];
}

// Verify the blocks from the next byte to send on, AHEAD_NBYTES of them or a little more. Whether they are good.
static int verify_next(struct connection *connection)
{
    const struct object *object = connection->object;
    uint64_t start = connection->verified - connection->verified % BLOCK_NBYTES, enough = connection->at + AHEAD_NBYTES;
    while (connection->verified < connection->stop && start < enough) {
        uint64_t stop = start + BLOCK_NBYTES < object->nbytes ? start + BLOCK_NBYTES : object->nbytes;
        if (!is_good(object, start, stop))
            return 0;
        connection->verified = stop < connection->stop ? stop : connection->stop;
        start = stop;
    }
    return 1;
}

// What may be sent now: the rest of the head, and the body as far as it is verified.
static size_t gather(struct connection *connection, struct iovec *iov, size_t *asked)
{
    const struct object *object = connection->object;
    size_t used = 0;
    *asked = 0;
    if (connection->head_sent < connection->head_nbytes) {
        *asked = connection->head_nbytes - connection->head_sent;
        iov[used++] = (struct iovec){connection->head + connection->head_sent, *asked};
    }
    uint64_t at = connection->at, begins = connection->extent_start;
    for (size_t i = connection->extent; at < connection->verified && used < IOV_COUNT; i++) {
        const struct extent *extent = &object->extents[i];
        uint64_t ends = begins + extent->nbytes, stop = ends < connection->verified ? ends : connection->verified;
        if (at < stop) {
            iov[used++] = (struct iovec){(void *)(extent->at + (at - begins)), stop - at};
            *asked += stop - at;
            at = stop;
        }
        begins = ends;
    }
    return used;
}

static void advance(struct thread *thread, struct connection *connection, size_t sent)
{
    size_t of_head = connection->head_nbytes - connection->head_sent;
    if (of_head > sent)
        of_head = sent;
    connection->head_sent += of_head;
    connection->at += sent - of_head;
    connection->moved_ns = thread->now_ns;
    count(&thread->counts.sent_bytes, sent - of_head);
    const struct object *object = connection->object;
    while (connection->extent + 1 < object->extent_count &&
           connection->at >= connection->extent_start + object->extents[connection->extent].nbytes)
        connection->extent_start += object->extents[connection->extent++].nbytes;
}

// Send what can be sent now. UNSERVED: the bytes are bad, and nothing has left. ENDED: the connection is closed.
static enum progress send_answer(struct thread *thread, struct connection *connection)
{
    uint64_t turn = 0;
    while (connection->head_sent < connection->head_nbytes || connection->at < connection->stop) {
        if (turn >= TURN_NBYTES)
            return WAITS;
        if (connection->at < connection->stop && connection->at >= connection->verified && !verify_next(connection)) {
            objects_distrust(thread->plane->objects, connection->object);
            if (!connection->head_sent)
                return UNSERVED;
            close_connection(thread, connection, 0);
            return ENDED;
        }
        struct iovec iov[IOV_COUNT];
        size_t asked;
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = gather(connection, iov, &asked)};
        ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return WAITS;
        if (sent < 0) {
            close_connection(thread, connection, 0);
            return ENDED;
        }
        advance(thread, connection, (size_t)sent);
        turn += (uint64_t)sent;
        if ((size_t)sent < asked) // there is no room for more now
            return WAITS;
    }
    return DONE;
}

// The answer has left as a whole. Whether the connection goes on; if not, it is closed.
static int end_answer(struct thread *thread, struct connection *connection)
{
    count_answer(thread, connection);
    objects_leave(thread->plane->objects, connection->object);
    connection->object = NULL;
    if (connection->head_is_own)
        free(connection->head);
    connection->head = NULL;
    connection->head_is_own = 0;
    connection->active_at_ns = thread->now_ns;
    int goes_on = !connection->closes;
    if (!goes_on)
        close_connection(thread, connection, 0);
    return goes_on;
}

// Have the answer wait for room in the socket. Whether it can; if not, the connection is closed.
static int wait_for_room(struct thread *thread, struct connection *connection)
{
    if (!connection->head_is_own && connection->head_sent < connection->head_nbytes) {
        char *head = malloc(connection->head_nbytes);
        if (!head) {
            close_connection(thread, connection, 0);
            return 0;
        }
        connection->head = memcpy(head, connection->head, connection->head_nbytes);
        connection->head_is_own = 1;
    }
    watch(thread, connection, EPOLLOUT);
    return 1;
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

static int make_answer_room(struct thread *thread, size_t nbytes)
{
    if (nbytes <= thread->answer_room)
        return 1;
    char *answer = realloc(thread->answer, nbytes);
    if (!answer)
        return 0;
    thread->answer = answer;
    thread->answer_room = nbytes;
    return 1;
}

// Begin to answer a request whose head these bytes are. UNSERVED: it is not for us.
static enum progress answer(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    struct plane *plane = thread->plane;
    struct head head;
    if (!parse_head(&head, data, nbytes) || names_bucket(&plane->options, head.values[H_HOST]))
        return UNSERVED;
    int64_t now_s = (int64_t)(clock_ns(CLOCK_REALTIME) / SECOND_NS);
    int tenant = authenticate(thread->keys, &head, now_s);
    if (tenant < 0)
        return UNSERVED;
    struct object *object = objects_find(plane->objects, (uint32_t)tenant, head.path, head.method == GET);
    if (!object)
        return UNSERVED;
    struct selection selection;
    if (!select_bytes(&selection, &head, object->nbytes, connection->exact) ||
        !make_answer_room(thread, answer_room(object))) {
        objects_leave(plane->objects, object);
        return UNSERVED;
    }
    connection->object = object;
    connection->operation = head.method == GET ? GET_OBJECT : HEAD_OBJECT;
    connection->partial = selection.partial;
    connection->closes = __atomic_load_n(&plane->draining, __ATOMIC_RELAXED);
    connection->head = thread->answer;
    connection->head_sent = 0;
    connection->head_nbytes =
        write_answer(thread->answer, &head, object, selection, &thread->date, now_s,
                     __atomic_add_fetch(&plane->request_id, 1, __ATOMIC_RELAXED), connection->closes);
    connection->start = connection->at = connection->verified = selection.start;
    connection->stop = head.method == GET ? selection.stop : selection.start;
    connection->extent = 0;
    connection->extent_start = 0;
    connection->began_ns = connection->moved_ns = thread->now_ns;
    advance(thread, connection, 0);
    enum progress progress = send_answer(thread, connection);
    if (progress == UNSERVED) {
        objects_leave(plane->objects, object);
        connection->object = NULL;
    }
    return progress;
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
        switch (answer(thread, connection, data, head_nbytes)) {
        case UNSERVED:
            hand_over(thread, connection, data, nbytes);
            return;
        case ENDED:
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
    if (!connection->object) {
        read_requests(thread, connection);
        return;
    }
    switch (send_answer(thread, connection)) {
    case UNSERVED: // nothing has left yet, and what was asked is not known any more
        close_connection(thread, connection, 0);
        return;
    case ENDED:
    case WAITS:
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

// Whether an answer goes too slowly, as kvgate/server/http1/transfer.py has it.
static int is_late(const struct plane_options *options, const struct connection *connection, uint64_t now_ns)
{
    if (since_s(now_ns, connection->moved_ns) > options->body_timeout_s)
        return 1;
    double due = since_s(now_ns, connection->began_ns) - options->body_timeout_s;
    return (double)(connection->at - connection->start) < due * options->min_rate;
}

// Close what takes too long, and when the plane drains what is idle.
static void sweep(struct thread *thread)
{
    const struct plane_options *options = &thread->plane->options;
    int draining = __atomic_load_n(&thread->plane->draining, __ATOMIC_RELAXED);
    pthread_mutex_lock(&thread->lock);
    for (struct connection *connection = thread->connections, *next; connection; connection = next) {
        next = connection->next;
        enum late what = connection->object ? LATE_BODY : connection->kept_nbytes ? LATE_HEAD : LATE_REQUEST;
        double limit_s = what == LATE_HEAD ? options->header_timeout_s : options->idle_timeout_s;
        int late = what == LATE_BODY ? is_late(options, connection, thread->now_ns)
                                     : since_s(thread->now_ns, connection->active_at_ns) > limit_s;
        if (late)
            count(&thread->counts.late[what], 1);
        if (late || (draining && what == LATE_REQUEST))
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
    pthread_mutex_init(&plane->handed_lock, NULL);
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
        plane_free(plane, NULL);
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

int plane_adopt(struct plane *plane, int fd, int listener, int exact)
{
    struct thread *thread = &plane->threads[0];
    for (unsigned i = 1; i < plane->options.threads; i++)
        if (connections_of(&plane->threads[i]) < connections_of(thread))
            thread = &plane->threads[i];
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection) {
        errno = ENOMEM;
        return -1;
    }
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
    pthread_mutex_lock(&plane->handed_lock);
    struct handed *handed = plane->handed;
    plane->handed = NULL;
    plane->handed_end = &plane->handed;
    pthread_mutex_unlock(&plane->handed_lock);
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
    memset(counts, 0, sizeof *counts);
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

void plane_free(struct plane *plane, void (*let_go)(struct object *))
{
    for (struct handed *handed = plane_handed(plane), *next; handed; handed = next) {
        next = handed->next;
        close(handed->fd);
        free(handed);
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
    pthread_mutex_destroy(&plane->handed_lock);
    free(plane);
}
