#include "answer.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "parse.h"

#define MAX_DIGITS 18
#define FIXED_NBYTES 512 // more than all that is not the object's own

// Digits in front of `text`, which are taken off it. Whether there is a number that fits; with none, *found is 0.
static int take_number(struct text *text, uint64_t *number, int *found)
{
    *number = 0;
    *found = 0;
    while (text->len && *text->at >= '0' && *text->at <= '9') {
        if (++*found > MAX_DIGITS)
            return 0;
        *number = *number * 10 + (uint64_t)(*text->at++ - '0');
        text->len--;
    }
    return 1;
}

int select_bytes(struct selection *selection, const struct head *head, uint64_t nbytes, int exact)
{
    *selection = (struct selection){0, nbytes, 0};
    struct text range = head->values[H_RANGE];
    if (!range.at)
        return 1;
    uint64_t first, last;
    int has_first, has_last;
    if (range.len < 6 || memcmp(range.at, "bytes=", 6))
        return 0;
    range.at += 6;
    range.len -= 6;
    if (!take_number(&range, &first, &has_first) || !range.len || *range.at != '-')
        return 0;
    range.at++;
    range.len--;
    if (!take_number(&range, &last, &has_last) || range.len || !(has_first || has_last))
        return 0;
    selection->partial = 1;
    if (!has_first) {
        selection->start = last < nbytes ? nbytes - last : 0;
        return selection->start < nbytes;
    }
    selection->start = first;
    if (has_last && (last < first || (exact && last >= nbytes)))
        return 0;
    if (has_last && last < nbytes)
        selection->stop = last + 1;
    return selection->start < selection->stop;
}

size_t answer_room(const struct object *object)
{
    return object->head.len + object->checksums.len + FIXED_NBYTES;
}

size_t stored_room(struct text lines)
{
    return lines.len + FIXED_NBYTES;
}

static char *put(char *out, const char *text, size_t nbytes)
{
    memcpy(out, text, nbytes);
    return out + nbytes;
}

static const char *date_text(struct date *date, int64_t now_s)
{
    static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    if (date->second != now_s) {
        time_t second = (time_t)now_s;
        struct tm utc;
        gmtime_r(&second, &utc);
        snprintf(date->text, sizeof date->text, "%.3s, %02u %.3s %04u %02u:%02u:%02u GMT", days + 3 * utc.tm_wday,
                 (unsigned)utc.tm_mday % 100, months + 3 * utc.tm_mon, (unsigned)(utc.tm_year + 1900) % 10000,
                 (unsigned)utc.tm_hour % 100, (unsigned)utc.tm_min % 100, (unsigned)utc.tm_sec % 100);
        date->second = now_s;
    }
    return date->text;
}

// What every head ends with; where that is.
static char *put_end(char *at, uint64_t nbytes, struct date *date, int64_t now_s, uint64_t id, int closes)
{
    return at + sprintf(at, "x-amz-request-id: %016llx\r\nContent-Length: %llu\r\nServer: kvgate\r\nDate: %s\r\n%s\r\n",
                        (unsigned long long)id, (unsigned long long)nbytes, date_text(date, now_s),
                        closes ? "Connection: close\r\n" : "");
}

size_t write_answer(char *out, const struct head *head, const struct object *object, struct selection selection,
                    struct date *date, int64_t now_s, uint64_t id, int closes)
{
    uint64_t nbytes = selection.stop - selection.start;
    char *at = out;
    at += sprintf(at, "HTTP/1.1 %s\r\n", selection.partial ? "206 Partial Content" : "200 OK");
    at = put(at, object->head.at, object->head.len);
    if (selection.partial)
        at += sprintf(at, "Content-Range: bytes %llu-%llu/%llu\r\n", (unsigned long long)selection.start,
                      (unsigned long long)selection.stop - 1, (unsigned long long)object->nbytes);
    if (text_is_nocase(head->values[H_CHECKSUM_MODE], "enabled", 7) && nbytes == object->nbytes)
        at = put(at, object->checksums.at, object->checksums.len);
    return (size_t)(put_end(at, nbytes, date, now_s, id, closes) - out);
}

size_t write_stored(char *out, struct text lines, struct date *date, int64_t now_s, uint64_t id, int closes)
{
    static const char status_line[] = "HTTP/1.1 200 OK\r\n";
    char *at = put(put(out, status_line, sizeof status_line - 1), lines.at, lines.len);
    return (size_t)(put_end(at, 0, date, now_s, id, closes) - out);
}
