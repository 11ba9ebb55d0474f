// Reading heads; head.h says what one is.
#pragma once

#include <string.h>

#include "head.h"

// Whether `data`, which need not be whole, can become such a head.
int may_begin_head(const char *data, size_t nbytes);

// Read the `nbytes` of a head, the blank line at its end included. Whether it is of the form that head.h describes; what
// `head` then holds lies in `data`.
int parse_head(struct head *head, const char *data, size_t nbytes);

static inline int text_is(struct text text, const char *other)
{
    return text.len == strlen(other) && !memcmp(text.at, other, text.len);
}
