#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plane_inside.h"

#define AT_ONCE_NBYTES (1 << 20) // the most that the event loop's thread takes by itself
#define LINGER_CALLS 16
#define LINGER_NBYTES (64 << 10)

// --- the plane's threads ---------------------------------------------------------------------------------------------

// The same text in a copy of what it lies in.
static struct text moved(struct text text, const char *from, const char *to)
{
    return text.at ? (struct text){to + (text.at - from), text.len} : text;
}

// How much of a body has come with its head.
static uint64_t came_with_head(const struct put *put)
{
    uint64_t came = put->data_nbytes - put->head_nbytes;
    return came < put->nbytes ? came : put->nbytes;
}

// Let the event loop's thread have a connection.
static void tell(struct plane *plane, struct connection *connection, struct puts *puts)
{
    struct put *put = connection->put;
    put->next = NULL;
    connection->state = ASKING;
    pthread_mutex_lock(&plane->news_lock);
    int first = !puts->first;
    *puts->end = put;
    puts->end = &put->next;
    pthread_mutex_unlock(&plane->news_lock);
    if (first)
        eventfd_write(plane->signal_fd, 1);
}

enum progress begin_put(struct thread *thread, struct connection *connection, const struct head *head, uint32_t tenant,
                        const char *data, size_t nbytes)
{
    struct put *put = malloc(sizeof *put + nbytes);
    if (!put)
        return UNSERVED;
    *put = (struct put){.connection = connection,
                        .fd = connection->fd,
                        .tenant = tenant,
                        .path = moved(head->path, data, put->data),
                        .content_type = moved(head->values[H_CONTENT_TYPE], data, put->data),
                        .checksum = moved(head->values[H_CHECKSUM_CRC64NVME], data, put->data),
                        .nbytes = head->body_nbytes,
                        .expects = head->values[H_EXPECT].at != NULL,
                        .head_nbytes = head->nbytes,
                        .data_nbytes = (uint32_t)nbytes};
    memcpy(put->data, data, nbytes);
    connection->put = put;
    connection->began_ns = thread->now_ns;
    epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    tell(thread->plane, connection, &thread->plane->asked);
    return ASKED;
}

// Receive what has come, `most` bytes of it. Whether that is the end, of which `stopped` then tells.
static int receive_some(struct plane_counts *counts, struct put *put, uint64_t most)
{
    uint64_t left = put->nbytes - put->received;
    if (!put->received && came_with_head(put)) {
        put->received = came_with_head(put);
        body_take(&put->areas, put->data + put->head_nbytes, put->received, &put->digest);
        count(&counts->received_bytes, put->received);
        left -= put->received;
    }
    put->stopped = 0;
    if (!left)
        return 1;
    size_t came = body_receive(put->fd, &put->areas, left < most ? left : most, &put->digest, &put->stopped);
    put->received += came;
    count(&counts->received_bytes, came);
    if (put->received == put->nbytes || put->stopped == EAGAIN || put->stopped == EWOULDBLOCK)
        put->stopped = 0;
    return put->stopped || put->received == put->nbytes;
}

void receive_body(struct thread *thread, struct connection *connection)
{
    struct put *put = connection->put;
    uint64_t before = put->received;
    int ended = receive_some(&thread->counts, put, TURN_NBYTES);
    if (put->received > before)
        connection->moved_ns = thread->now_ns;
    if (ended)
        end_body(thread, connection, put->stopped);
}

void end_body(struct thread *thread, struct connection *connection, int stopped)
{
    connection->put->stopped = stopped;
    epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    tell(thread->plane, connection, &thread->plane->received);
}

// --- the event loop's thread -----------------------------------------------------------------------------------------

// What has been told of since the last call.
static struct put *take(struct plane *plane, struct puts *puts)
{
    pthread_mutex_lock(&plane->news_lock);
    struct put *first = puts->first;
    puts->first = NULL;
    puts->end = &puts->first;
    pthread_mutex_unlock(&plane->news_lock);
    for (struct put *put = first; put; put = put->next)
        plane->asking[put->fd] = put; // there is room: it had it when it was adopted
    return first;
}

struct put *plane_asked(struct plane *plane)
{
    return take(plane, &plane->asked);
}

struct put *plane_received(struct plane *plane)
{
    return take(plane, &plane->received);
}

struct put *plane_asking(struct plane *plane, int fd)
{
    return fd >= 0 && (size_t)fd < plane->asking_room ? plane->asking[fd] : NULL;
}

// Give a connection to its thread, which waits for these events. 0, or -1 with errno set: then it is ASKING still.
static int give(struct connection *connection, enum state state, uint32_t interest)
{
    struct thread *thread = connection->thread;
    struct epoll_event event = {.events = interest, .data.ptr = connection};
    pthread_mutex_lock(&thread->lock);
    connection->interest = interest;
    connection->state = state;
    int failed = epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event);
    if (failed)
        connection->state = ASKING;
    pthread_mutex_unlock(&thread->lock);
    return failed;
}

// Tell a peer that it may send its body, where it waits for that. Whether it was told: its socket has room, unless it
// does not read what it has asked for before.
static int invite(const struct put *put)
{
    static const char line[] = "HTTP/1.1 100 Continue\r\n\r\n";
    const ssize_t nbytes = sizeof line - 1;
    if (!put->expects || came_with_head(put)) // who sends before it is told does not wait
        return 1;
    return send(put->fd, line, (size_t)nbytes, MSG_NOSIGNAL | MSG_DONTWAIT) == nbytes;
}

int plane_receive(struct plane *plane, struct put *put, struct areas areas, struct block_digest digest, void *held,
                  int at_once)
{
    put->areas = areas;
    put->digest = digest;
    if (!invite(put)) {
        put->stopped = EPIPE;
        return 1;
    }
    if ((at_once || came_with_head(put) == put->nbytes) && receive_some(&plane->counts, put, AT_ONCE_NBYTES))
        return 1;
    struct connection *connection = put->connection;
    connection->moved_ns = clock_ns(CLOCK_MONOTONIC);
    put->held = held;
    plane->asking[put->fd] = NULL;
    if (!give(connection, RECEIVING, EPOLLIN))
        return 0;
    plane->asking[put->fd] = put;
    put->held = NULL;
    return -1;
}

// Let a peer that sends on read what it is answered, instead of a reset: take some of what it sends.
static void linger(int fd)
{
    char nowhere[LINGER_NBYTES];
    shutdown(fd, SHUT_WR);
    for (int i = 0; i < LINGER_CALLS && recv(fd, nowhere, sizeof nowhere, MSG_DONTWAIT) > 0; i++)
        ;
}

// Send this, which was allocated, and wait for the next request.
static void answer(struct plane *plane, struct put *put, char *head, size_t nbytes, enum operation operation, int closes)
{
    struct connection *connection = put->connection;
    struct thread *thread = connection->thread;
    size_t end = put->head_nbytes + (size_t)came_with_head(put);
    plane->asking[put->fd] = NULL;
    connection->put = NULL;
    connection->operation = operation;
    connection->partial = 0;
    connection->closes = closes;
    connection->start = connection->at = connection->stop = connection->verified = 0;
    int kept = end == put->data_nbytes || keep(thread, connection, put->data + end, put->data_nbytes - end);
    free(put->areas.at);
    free(put);
    if (!kept) { // and the connection is closed
        free(head);
        return;
    }
    ssize_t sent = head ? send(connection->fd, head, nbytes, MSG_NOSIGNAL | MSG_DONTWAIT) : -1;
    if (!head || (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) {
        free(head);
        count_answer(&plane->counts, &plane->options, connection);
        close_connection(thread, connection, 0);
        return;
    }
    uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    if (sent == (ssize_t)nbytes && (closes || !connection->kept)) {
        free(head);
        count_answer(&plane->counts, &plane->options, connection);
        connection->active_at_ns = now_ns;
        if (closes)
            linger(connection->fd);
        if (closes || give(connection, WAITING, EPOLLIN))
            close_connection(thread, connection, 0);
        return;
    }
    connection->head = head;
    connection->head_is_own = 1;
    connection->head_nbytes = nbytes;
    connection->head_sent = sent < 0 ? 0 : (size_t)sent;
    connection->moved_ns = now_ns;
    if (give(connection, ANSWERING, EPOLLOUT))
        close_connection(thread, connection, 0);
}

void plane_answer(struct plane *plane, struct put *put, struct text lines)
{
    int closes = __atomic_load_n(&plane->draining, __ATOMIC_RELAXED);
    char *head = malloc(stored_room(lines));
    size_t nbytes = 0;
    if (head)
        nbytes = write_stored(head, lines, &plane->date, (int64_t)(clock_ns(CLOCK_REALTIME) / SECOND_NS),
                              next_request_id(plane), closes);
    answer(plane, put, head, nbytes, PUT_OBJECT, closes);
}

void plane_refuse(struct plane *plane, struct put *put, struct text whole, int closes)
{
    char *copy = malloc(whole.len);
    if (copy)
        memcpy(copy, whole.at, whole.len);
    answer(plane, put, copy, whole.len, UNCOUNTED, closes || put->received < put->nbytes);
}

struct handed *plane_return(struct plane *plane, struct put *put)
{
    struct connection *connection = put->connection;
    plane->asking[put->fd] = NULL;
    connection->put = NULL;
    struct handed *handed = release_connection(connection->thread, connection, put->data, put->data_nbytes);
    free(put);
    return handed;
}

void leave_put(struct plane *plane, struct put *put)
{
    put->next = plane->ended;
    plane->ended = put;
}
