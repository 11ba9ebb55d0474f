// What is answered to a request for an object that the plane has: which bytes, under which head.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "head.h"
#include "objects.h"

struct selection {
    uint64_t start, stop; // the bytes [start, stop) of the object
    int partial;          // whether the answer is a 206
};

// The bytes that a request asks for. Whether they are there: if not, or where the range is unusual, it is not for us.
//
// exact: whether all bytes of a range must be there
int select_bytes(struct selection *selection, const struct head *head, uint64_t nbytes, int exact);

// The text of this second's Date header. Each thread has its own.
struct date {
    int64_t second;
    char text[40];
};

// How many bytes `write_answer` may need for an object.
size_t answer_room(const struct object *object);

// The same for `write_stored`.
size_t stored_room(struct text lines);

// Write the head of the answer; how many bytes it has.
//
// id:     of the request
// closes: whether the connection ends with it
size_t write_answer(char *out, const struct head *head, const struct object *object, struct selection selection,
                    struct date *date, int64_t now_s, uint64_t id, int closes);

// The same for an upload that is stored.
//
// lines: what is said of it
size_t write_stored(char *out, struct text lines, struct date *date, int64_t now_s, uint64_t id, int closes);
