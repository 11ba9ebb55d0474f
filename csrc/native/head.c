#include "head.h"

#include <string.h>

#include "parse.h"

static const char VERSION[] = " HTTP/1.1";

static int is_path_char(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c && strchr("/-._~", c));
}

int may_begin_head(const char *data, size_t nbytes)
{
    return !memcmp(data, "GET ", nbytes < 4 ? nbytes : 4) || !memcmp(data, "HEAD ", nbytes < 5 ? nbytes : 5);
}

// "GET /path HTTP/1.1", of which `at` to `end` is one line. Whether it is that.
static int take_request_line(struct head *head, const char *at, const char *end)
{
    const size_t version = sizeof VERSION - 1;
    if (end - at < 14 || memcmp(end - version, VERSION, version))
        return 0;
    head->method = *at == 'H' ? HEAD : GET;
    at += head->method == HEAD ? 5 : 4;
    end -= version;
    if (at >= end)
        return 0;
    const char *mark = memchr(at, '?', (size_t)(end - at));
    if (mark) {
        head->query = (struct text){mark + 1, (uint32_t)(end - mark - 1)};
        if (!text_is(head->query, head->method == HEAD ? "x-id=HeadObject" : "x-id=GetObject"))
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

// Whether the headers say that there is no body, and that the connection goes on.
static int is_plain(const struct head *head)
{
    const struct text *length = &head->values[H_CONTENT_LENGTH], *option = &head->values[H_CONNECTION];
    if (!head->values[H_HOST].at || (length->at && !text_is(*length, "0")))
        return 0;
    return !option->at || (text_is_nocase(*option, "keep-alive", 10));
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
