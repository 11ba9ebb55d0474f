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

// As text_is, whatever the case of ASCII letters; `other` is in lower case. Unlike strncasecmp the same in every locale.
static inline int text_is_nocase(struct text text, const char *other, size_t nbytes)
{
    if (text.len != nbytes)
        return 0;
    for (size_t i = 0; i < nbytes; i++) {
        char c = text.at[i];
        if ((c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c) != other[i])
            return 0;
    }
    return 1;
}
