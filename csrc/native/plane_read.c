#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "crc64nvme.h"
#include "plane_inside.h"

#define AHEAD_NBYTES (4ull << 20) // verified before what they begin with is sent
#define IOV_COUNT 64

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
    while (object && connection->extent + 1 < object->extent_count &&
           connection->at >= connection->extent_start + object->extents[connection->extent].nbytes)
        connection->extent_start += object->extents[connection->extent++].nbytes;
}

enum progress send_answer(struct thread *thread, struct connection *connection)
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

int end_answer(struct thread *thread, struct connection *connection)
{
    count_answer(&thread->counts, &thread->plane->options, connection);
    if (connection->object)
        objects_leave(thread->plane->objects, connection->object);
    connection->object = NULL;
    connection->state = WAITING;
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

int wait_for_room(struct thread *thread, struct connection *connection)
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

enum progress begin_answer(struct thread *thread, struct connection *connection, const struct head *head,
                           uint32_t tenant, int64_t now_s)
{
    struct plane *plane = thread->plane;
    struct object *object = objects_find(plane->objects, tenant, head->path, head->method == GET);
    if (!object)
        return UNSERVED;
    struct selection selection;
    if (!select_bytes(&selection, head, object->nbytes, connection->exact) ||
        !make_answer_room(thread, answer_room(object))) {
        objects_leave(plane->objects, object);
        return UNSERVED;
    }
    connection->state = ANSWERING;
    connection->object = object;
    connection->operation = head->method == GET ? GET_OBJECT : HEAD_OBJECT;
    connection->partial = selection.partial;
    connection->closes = __atomic_load_n(&plane->draining, __ATOMIC_RELAXED);
    connection->head = thread->answer;
    connection->head_sent = 0;
    connection->head_nbytes = write_answer(thread->answer, head, object, selection, &thread->date, now_s,
                                           next_request_id(plane), connection->closes);
    connection->start = connection->at = connection->verified = selection.start;
    connection->stop = head->method == GET ? selection.stop : selection.start;
    connection->extent = 0;
    connection->extent_start = 0;
    connection->began_ns = connection->moved_ns = thread->now_ns;
    advance(thread, connection, 0);
    enum progress progress = send_answer(thread, connection);
    if (progress == UNSERVED) {
        objects_leave(plane->objects, object);
        connection->object = NULL;
        connection->state = WAITING;
    }
    return progress;
}
