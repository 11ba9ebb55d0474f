// What the files of the plane share: plane.c has the threads, plane_connection.c what becomes of connections,
// plane_read.c GET and HEAD, plane_put.c PUT.
#pragma once

#include <pthread.h>
#include <sys/epoll.h>

#include "answer.h"
#include "body.h"
#include "plane.h"

#define READ_NBYTES (16 << 10)   // what is read at once while a head is waited for
#define TURN_NBYTES (8ull << 20) // after so many bytes of a body others get their turn
#define SECOND_NS 1000000000ull

enum state {
    WAITING,   // for a request, or the rest of its head
    ANSWERING, // while there is something to be sent
    ASKING,    // the event loop's thread says what becomes of it, and alone uses it; it is in no epoll
    RECEIVING, // the body of a PUT
};

struct connection {
    int fd, listener, exact;
    enum state state; // changed by the event loop's thread under the lock of `thread`, and else by that thread
    struct thread *thread;
    uint32_t interest;
    struct connection *previous, *next;
    uint64_t active_at_ns; // when the last request began to come, or was answered

    char *kept; // what has come and belongs to requests to come
    uint32_t kept_nbytes;

    uint64_t began_ns, moved_ns; // of what is under way
    struct put *put;             // while ASKING or RECEIVING

    // The answer under way.
    enum operation operation;
    struct object *object; // whose bytes are the body, if there is one
    char *head;            // the thread's, or allocated once the answer has to wait
    size_t head_nbytes, head_sent;
    uint64_t start, at, stop, verified; // the body up to `at` has left, and up to `verified` may
    size_t extent;                      // that `at` lies in, which begins at `extent_start` of the object
    uint64_t extent_start;
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

// In the order of their coming; `*end` is where the next one goes.
struct puts {
    struct put *first, **end;
};

struct plane {
    struct plane_options options;
    struct objects *objects;
    int signal_fd, stopping, draining;
    uint64_t request_id;
    pthread_mutex_t news_lock; // of the three that follow
    struct handed *handed, **handed_end;
    struct puts asked, received;

    // The event loop's thread's own.
    struct plane_counts counts;
    struct date date;
    struct put **asking; // by socket, those that it has been told of and are ASKING
    size_t asking_room;
    struct put *ended; // those that the end of the plane left over

    struct thread threads[];
};

enum progress { DONE, WAITS, ENDED, UNSERVED, ASKED };

uint64_t clock_ns(clockid_t clock);

// Of one thread, which alone writes it, for others to read.
static inline void count(uint64_t *counter, uint64_t amount)
{
    __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
}

// The number of a request.
static inline uint64_t next_request_id(struct plane *plane)
{
    return __atomic_add_fetch(&plane->request_id, 1, __ATOMIC_RELAXED);
}

// --- plane_connection.c ----------------------------------------------------------------------------------------------

// Take it off its thread's list, whose lock is held.
void unlink_connection(struct thread *thread, struct connection *connection);

// End a connection; in the middle of an answer by a reset, so that nobody takes it for whole.
void close_connection(struct thread *thread, struct connection *connection, int locked);

// Wait for these events of a connection that its thread waits for already.
void watch(struct thread *thread, struct connection *connection, uint32_t interest);

// Let Python have a connection, of which these bytes have been read and nothing of an answer has been sent.
void hand_over(struct thread *thread, struct connection *connection, const char *data, size_t nbytes);

// Forget a connection that is not in the epoll, and of which `data` has been read. NULL without memory; then it is closed.
struct handed *release_connection(struct thread *thread, struct connection *connection, const char *data, size_t nbytes);

// Keep bytes for later. Whether there was memory for them; if not, the connection is closed.
int keep(struct thread *thread, struct connection *connection, const char *data, size_t nbytes);

// Note an answer that has come to its end, one way or another.
void count_answer(struct plane_counts *counts, const struct plane_options *options, const struct connection *connection);

// --- plane_read.c ----------------------------------------------------------------------------------------------------

// Begin to answer a GET or HEAD of a tenant. UNSERVED: it is not for us.
enum progress begin_answer(struct thread *thread, struct connection *connection, const struct head *head,
                           uint32_t tenant, int64_t now_s);

// Send what can be sent now. UNSERVED: the bytes are bad, and nothing has left. ENDED: the connection is closed.
enum progress send_answer(struct thread *thread, struct connection *connection);

// The answer has left as a whole. Whether the connection goes on; if not, it is closed.
int end_answer(struct thread *thread, struct connection *connection);

// Have the answer wait for room in the socket. Whether it can; if not, the connection is closed.
int wait_for_room(struct thread *thread, struct connection *connection);

// --- plane_put.c -----------------------------------------------------------------------------------------------------

// Have Python say what becomes of a PUT of a tenant; `data` is what has been read, from its head on. UNSERVED: there is no
// memory. ASKED: the connection is the event loop's thread's.
enum progress begin_put(struct thread *thread, struct connection *connection, const struct head *head, uint32_t tenant,
                        const char *data, size_t nbytes);

// Receive what has come of a body. The connection may be the event loop's thread's afterwards.
void receive_body(struct thread *thread, struct connection *connection);

// Receive no more, and let Python say what becomes of it.
void end_body(struct thread *thread, struct connection *connection, int stopped);

// Have what an upload holds let go of by `plane_free`.
void leave_put(struct plane *plane, struct put *put);
