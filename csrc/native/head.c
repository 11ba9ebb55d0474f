#include "head.h"

#include <string.h>

#include "parse.h"

#define MAX_LENGTH_DIGITS 16

static const char VERSION[] = " HTTP/1.1";

static const struct {
    struct text beginning; // of a request line
    const char *query;
} methods[] = {
    [GET] = {{"GET ", 4}, "x-id=GetObject"},
    [HEAD] = {{"HEAD ", 5}, "x-id=HeadObject"},
    [PUT] = {{"PUT ", 4}, "x-id=PutObject"},
};

static int is_path_char(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c && strchr("/-._~", c));
}

int may_begin_head(const char *data, size_t nbytes)
{
    for (int method = GET; method <= PUT; method++) {
        struct text beginning = methods[method].beginning;
        if (!memcmp(data, beginning.at, nbytes < beginning.len ? nbytes : beginning.len))
            return 1;
    }
    return 0;
}

// "GET /path HTTP/1.1", of which `at` to `end` is one line. Whether it is that.
static int take_request_line(struct head *head, const char *at, const char *end)
{
    const size_t version = sizeof VERSION - 1;
    if (end - at < 14 || memcmp(end - version, VERSION, version))
        return 0;
    head->method = *at == 'G' ? GET : *at == 'H' ? HEAD : PUT;
    at += methods[head->method].beginning.len;
    end -= version;
    if (at >= end)
        return 0;
    const char *mark = memchr(at, '?', (size_t)(end - at));
    if (mark) {
        head->query = (struct text){mark + 1, (uint32_t)(end - mark - 1)};
        if (!text_is(head->query, methods[head->method].query))
            return 0;
        end = mark;
    }
    head->path = (struct text){at, (uint32_t)(end - at)};
    if (*at != '/')
        return 0;
    for (; at < end; at++)
        if (!is_path_char((unsigned char)*at))
            return 0;
    return 1;
}

static int header_of(struct text name)
{
    for (int header = 0; header < H_COUNT; header++)
        if (text_is_nocase(name, header_names[header].at, header_names[header].len))
            return header;
    return -1;
}

// One header line. Whether it is one that a head may have, the first of its name, with a value that may be sent.
static int take_field(struct head *head, const char *at, const char *end)
{
    const char *colon = memchr(at, ':', (size_t)(end - at));
    if (!colon)
        return 0;
    int header = header_of((struct text){at, (uint32_t)(colon - at)});
    if (header < 0 || head->values[header].at)
        return 0;
    const char *value = colon + 1;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    for (const char *c = value; c < end; c++)
        if (*c != '\t' && (*c < ' ' || *c > '~'))
            return 0;
    head->values[header] = (struct text){value, (uint32_t)(end - value)};
    return 1;
}

// How many bytes follow, as far as the headers say. Whether they say so in the common way.
static int take_length(struct head *head)
{
    struct text text = head->values[H_CONTENT_LENGTH];
    if (text.at && (!text.len || text.len > MAX_LENGTH_DIGITS))
        return 0;
    for (uint32_t i = 0; i < text.len; i++) {
        if (text.at[i] < '0' || text.at[i] > '9')
            return 0;
        head->body_nbytes = head->body_nbytes * 10 + (uint64_t)(text.at[i] - '0');
    }
    return 1;
}

// Whether there is a body exactly where the method has one, the headers are of those that it has, and the connection
// goes on.
static int is_plain(struct head *head)
{
    const struct text *values = head->values, option = values[H_CONNECTION];
    if (!values[H_HOST].at || !take_length(head) || (option.at && !text_is_nocase(option, "keep-alive", 10)))
        return 0;
    if (head->method == PUT)
        return head->body_nbytes && !values[H_RANGE].at && !values[H_CHECKSUM_MODE].at &&
               (!values[H_EXPECT].at || text_is_nocase(values[H_EXPECT], "100-continue", 12));
    return !head->body_nbytes && !values[H_CONTENT_TYPE].at && !values[H_EXPECT].at &&
           !values[H_CHECKSUM_CRC64NVME].at && !values[H_SDK_CHECKSUM].at;
}

int parse_head(struct head *head, const char *data, size_t nbytes)
{
    memset(head, 0, sizeof *head);
    head->nbytes = (uint32_t)nbytes;
    const char *end = data + nbytes - 2; // of the last line that is not blank
    if (!may_begin_head(data, nbytes))
        return 0;
    for (const char *line = data; line < end;) {
        const char *line_end = memchr(line, '\r', (size_t)(end - line));
        if (!line_end || line_end[1] != '\n')
            return 0;
        if (!(line == data ? take_request_line(head, line, line_end) : take_field(head, line, line_end)))
            return 0;
        line = line_end + 2;
    }
    return is_plain(head);
}
