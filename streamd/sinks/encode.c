/* The boxes of a frame as they stand in its message, in JSON and in MessagePack: the same bytes as msgspec's of the structures
 * in message.py. It uses nothing of Python and is called through ctypes.
 *
 * Every number is rounded to some decimals: scaled, made whole, and divided again, as encoding.py does. JSON's shortest
 * form of such a number is its decimals without zeros at the end, as long as there are at most 15 digits.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { FIXED = 320 }; /* most bytes of a box without its label, as in native.py */

/* The columns of a frame's boxes. */
typedef struct {
    const char *number, *age, *velocity, *corners, *score, *class_id;
} Columns;

typedef struct {
    char *to;
    int wrong; /* a number that is not finite, or too large */
} Writer;

static void text(Writer *w, const char *s, size_t n)
{
    memcpy(w->to, s, n);
    w->to += n;
}

#define TEXT(w, s) text(w, s, sizeof(s) - 1)

static void whole(Writer *w, uint64_t value)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *w->to++ = digits[--n];
}

/* The number times `step`, a power of ten with `places` zeros. */
static double scaled(Writer *w, double value, double step)
{
    double made = rint(value * step);
    if (!(fabs(made) < 1e14)) {
        w->wrong = 1;
        return 0;
    }
    return made;
}

static void decimal(Writer *w, double value, double step, int places)
{
    double made = scaled(w, value, step);
    if (signbit(made))
        *w->to++ = '-';
    uint64_t all = (uint64_t)fabs(made), unit = (uint64_t)step;
    whole(w, all / unit);
    *w->to++ = '.';
    uint64_t rest = all % unit;
    for (int i = places - 1; i >= 0; i--) {
        w->to[i] = (char)('0' + rest % 10);
        rest /= 10;
    }
    while (places > 1 && w->to[places - 1] == '0')
        places--;
    w->to += places;
}

static void big_endian(Writer *w, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--)
        *w->to++ = (char)(value >> (8 * i));
}

static void packed_double(Writer *w, double value, double step)
{
    double made = scaled(w, value, step) / step;
    uint64_t bits;
    memcpy(&bits, &made, sizeof bits);
    *w->to++ = (char)0xcb;
    big_endian(w, bits, 8);
}

static void packed_whole(Writer *w, uint64_t value)
{
    if (value < 128) {
        *w->to++ = (char)value;
        return;
    }
    int power = value < 1 << 8 ? 0 : value < 1 << 16 ? 1 : value < (uint64_t)1 << 32 ? 2 : 3;
    *w->to++ = (char)(0xcc + power);
    big_endian(w, value, 1 << power);
}

static double real(const char *column, int64_t i)
{
    double value;
    memcpy(&value, column + i * 8, sizeof value);
    return value;
}

static double single(const char *column, int64_t i)
{
    float value;
    memcpy(&value, column + i * 4, sizeof value);
    return value;
}

static void json_box(Writer *w, const Columns *c, int64_t i, int64_t number)
{
    decimal(w, single(c->score, i), 10000, 4);
    TEXT(w, ",\"box\":[");
    for (int side = 0; side < 4; side++) {
        if (side)
            *w->to++ = ',';
        decimal(w, single(c->corners, 4 * i + side), 100, 2);
    }
    *w->to++ = ']';
    if (number > 0) {
        TEXT(w, ",\"track\":{\"id\":");
        whole(w, (uint64_t)number);
        TEXT(w, ",\"age_s\":");
        decimal(w, real(c->age, i), 1000, 3);
        TEXT(w, ",\"confirmed\":true,\"velocity\":[");
        decimal(w, real(c->velocity, 2 * i), 10, 1);
        *w->to++ = ',';
        decimal(w, real(c->velocity, 2 * i + 1), 10, 1);
        TEXT(w, "]}");
    } else if (number == 0) {
        TEXT(w, ",\"track\":null");
    }
    *w->to++ = '}';
}

static void packed_box(Writer *w, const Columns *c, int64_t i, int64_t number)
{
    packed_double(w, single(c->score, i), 10000);
    TEXT(w, "\xa3" "box\x94");
    for (int side = 0; side < 4; side++)
        packed_double(w, single(c->corners, 4 * i + side), 100);
    if (number >= 0)
        TEXT(w, "\xa5track");
    if (number > 0) {
        TEXT(w, "\x84\xa2id");
        packed_whole(w, (uint64_t)number);
        TEXT(w, "\xa5" "age_s");
        packed_double(w, real(c->age, i), 1000);
        TEXT(w, "\xa9" "confirmed\xc3\xa8velocity\x92");
        packed_double(w, real(c->velocity, 2 * i), 10);
        packed_double(w, real(c->velocity, 2 * i + 1), 10);
    } else if (number == 0) {
        *w->to++ = (char)0xc0;
    }
}

/* n: how many boxes.
 * boxes: where `tracked`, ids, ages and velocities; then corners, scores and classes; of each for `room` boxes.
 * first: the first of the boxes.
 * packed: MessagePack, not JSON.
 * labels, ends: by class, of which there are `classes`, what stands before the score, one after the other; and its end.
 * out: room for FIXED bytes a box, besides its label, and 8.
 *
 * Returns the number of bytes; -1 for what is to be left to msgspec.
 */
int64_t encode_part(int64_t n, const char *boxes, int64_t room, int64_t first, int64_t tracked, int64_t packed,
                     const char *labels, const int64_t *ends, int64_t classes, char *out)
{
    const char *corners = boxes + (tracked ? 32 * room : 0);
    Columns c = {
        boxes + 8 * first,
        boxes + 8 * (room + first),
        boxes + 16 * (room + first),
        corners + 16 * first,
        corners + 16 * room + 4 * first,
        corners + 20 * room + 4 * first,
    };
    Writer w = {out, 0};
    if (!packed) {
        *w.to++ = '[';
    } else if (n < 16) {
        *w.to++ = (char)(0x90 + n);
    } else {
        *w.to++ = (char)(n < 1 << 16 ? 0xdc : 0xdd);
        big_endian(&w, (uint64_t)n, n < 1 << 16 ? 2 : 4);
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t class_id;
        int64_t number = -1;
        memcpy(&class_id, c.class_id + 4 * i, sizeof class_id);
        if (tracked)
            memcpy(&number, c.number + 8 * i, sizeof number);
        if (class_id < 0 || class_id >= classes || number < -1 || (tracked && number < 0))
            return -1;
        int64_t begin = class_id ? ends[class_id - 1] : 0;
        if (packed)
            *w.to++ = (char)(tracked ? 0x85 : 0x84);
        else if (i)
            *w.to++ = ',';
        text(&w, labels + begin, (size_t)(ends[class_id] - begin));
        if (packed)
            packed_box(&w, &c, i, number);
        else
            json_box(&w, &c, i, number);
    }
    if (!packed)
        *w.to++ = ']';
    return w.wrong ? -1 : w.to - out;
}
