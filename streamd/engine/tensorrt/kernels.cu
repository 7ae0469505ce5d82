// The device code of streamd: letterboxing before the network, box decoding and non-maximum suppression after it, and the
// small pictures in which motion is found.
//
// Everything is written as plain functions of one pixel, one output row or one thread of a block, so that a C++ compiler
// builds the same code for the host, where tests compare it with the NumPy reference: see the two sections at the end.
// The structures are filled by kernels.py, decode.py, suppress.py and glance.c, field by field; a change here is a change
// there.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define STREAMD_DEVICE 1
#define SYNC() __syncthreads()
#define FN __device__ __forceinline__
#define FN_MEMBER __device__ __forceinline__
#define ROLLED _Pragma("unroll 1")
#else
#include <math.h>
#include <string.h>
#define FN static inline
#define FN_MEMBER inline
#define ROLLED
#ifndef SYNC
#define SYNC()  // a block of one thread waits for nobody
#endif
#endif

// ---------------------------------------------------------------------------------------------------------- numbers

struct half_bits {
  u16 bits;
};

#ifdef STREAMD_DEVICE
FN float half_to_float(u16 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
FN u16 float_to_half(float f) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
FN u32 next_index(u32 *counter) { return atomicAdd(counter, 1u); }
FN u32 float_bits(float f) { return __float_as_uint(f); }
FN u32 lowest_bit(u64 v) { return (u32)__ffsll((i64)v) - 1; }
FN double rounded_product(double a, double b) { return __dmul_rn(a, b); }  // never fused with a sum
#else
FN float half_to_float(u16 h) {
  u32 sign = (u32)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    float f = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24: subnormal halves are normal floats
    return sign ? -f : f;
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
FN u16 float_to_half(float f) {
  u32 bits;
  memcpy(&bits, &f, 4);
  u32 sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (u16)(sign | 0x7e00);
  if (rest >= 0x477ff000u) return (u16)(sign | 0x7c00);  // rounds to infinity
  if (rest < 0x38800000u) {                              // subnormal: let the adder round to even at 2^-24
    float magic = 0.5f, value;
    memcpy(&value, &rest, 4);
    value += magic;
    memcpy(&bits, &value, 4);
    return (u16)(sign | (bits - 0x3f000000u));
  }
  rest += 0xfffu + ((rest >> 13) & 1);
  return (u16)(sign | ((rest - 0x38000000u) >> 13));
}
FN u32 next_index(u32 *counter) { return (*counter)++; }
FN u32 float_bits(float f) {
  u32 bits;
  memcpy(&bits, &f, 4);
  return bits;
}
FN u32 lowest_bit(u64 v) { return (u32)__builtin_ctzll(v); }
FN double rounded_product(double a, double b) { return a * b; }
#endif

FN float to_float(float v) { return v; }
FN float to_float(half_bits v) { return half_to_float(v.bits); }
FN float clamp(float v, float low, float high) { return fminf(fmaxf(v, low), high); }

FN void put(float *p, u64 i, float v) { p[i] = v; }
FN void put(half_bits *p, u64 i, float v) { p[i].bits = float_to_half(v); }
FN void put(u8 *p, u64 i, float v) { p[i] = (u8)clamp(rintf(v), 0.0f, 255.0f); }
FN void put(i8 *p, u64 i, float v) { p[i] = (i8)clamp(rintf(v), -128.0f, 127.0f); }

// ------------------------------------------------------------------------------------------------------- preprocess

// How the samples lie in memory; the numbers are Layout in kernels.py.
enum { PLANAR8 = 0, SEMI8 = 1, PLANAR16 = 2, SEMI16 = 3, PACKED8 = 4, GRAY8 = 5 };

// One picture of the batch. A position along an axis of a plane, in that plane's samples and 32.32 fixed point, is
// axis[0] + axis[1] * column + axis[2] * row of the upright content: rotation, crop and scale in one affine map, exact
// to 2^-20 of a sample where single precision would lose the fraction of a wide picture.
struct Picture {
  u64 plane[3];
  i32 pitch[3];  // bytes
  i32 layout;
  i64 luma_x[3], luma_y[3], chroma_x[3], chroma_y[3];
  i32 luma_width, luma_height, chroma_width, chroma_height;
  i32 pad_x, pad_y, content_width, content_height;  // pixels of the network's input
  float matrix[3][4];  // samples to 0..255 in the network's channel order: three factors and an offset a channel
};

struct Tap {
  i32 low, high;
  float weight;  // of high
};

FN Tap tap(const i64 *axis, i32 column, i32 row, i32 size) {
  i64 position = axis[0] + axis[1] * column + axis[2] * row;
  i64 last = (i64)(size - 1) << 32;
  if (position < 0) position = 0;
  if (position > last) position = last;
  Tap t;
  t.low = (i32)(position >> 32);
  t.high = t.low + 1 < size ? t.low + 1 : size - 1;
  t.weight = (float)(u32)position * 2.3283064365386963e-10f;  // 2^-32
  return t;
}

FN float blend(float a, float b, float c, float d, const Tap &x, const Tap &y) {
  float top = a + (b - a) * x.weight;
  float bottom = c + (d - c) * x.weight;
  return top + (bottom - top) * y.weight;
}

// Four taps of the sample at `offset` among `step` interleaved ones.
template <class S>
FN float sample(u64 plane, i32 pitch, const Tap &x, const Tap &y, i32 step, i32 offset) {
  const S *low = (const S *)(plane + (u64)y.low * pitch) + offset;
  const S *high = (const S *)(plane + (u64)y.high * pitch) + offset;
  return blend(low[x.low * step], low[x.high * step], high[x.low * step], high[x.high * step], x, y);
}

// Channel values 0..255 of one upright content pixel, in the network's order.
FN void fetch(const Picture *p, i32 column, i32 row, float *out) {
  Tap x = tap(p->luma_x, column, row, p->luma_width), y = tap(p->luma_y, column, row, p->luma_height);
  float a, b = 0.0f, c = 0.0f;
  i32 layout = p->layout;
  if (layout == PACKED8) {
    a = sample<u8>(p->plane[0], p->pitch[0], x, y, 3, 0);
    b = sample<u8>(p->plane[0], p->pitch[0], x, y, 3, 1);
    c = sample<u8>(p->plane[0], p->pitch[0], x, y, 3, 2);
  } else {
    bool wide = layout == PLANAR16 || layout == SEMI16;
    a = wide ? sample<u16>(p->plane[0], p->pitch[0], x, y, 1, 0) : sample<u8>(p->plane[0], p->pitch[0], x, y, 1, 0);
    if (layout != GRAY8) {
      x = tap(p->chroma_x, column, row, p->chroma_width);
      y = tap(p->chroma_y, column, row, p->chroma_height);
      bool semi = layout == SEMI8 || layout == SEMI16;
      i32 v = semi ? 1 : 2, step = semi ? 2 : 1, offset = semi ? 1 : 0;
      if (wide) {
        b = sample<u16>(p->plane[1], p->pitch[1], x, y, step, 0);
        c = sample<u16>(p->plane[v], p->pitch[v], x, y, step, offset);
      } else {
        b = sample<u8>(p->plane[1], p->pitch[1], x, y, step, 0);
        c = sample<u8>(p->plane[v], p->pitch[v], x, y, step, offset);
      }
    }
  }
  for (i32 i = 0; i < 3; i++) {
    const float *m = p->matrix[i];
    out[i] = clamp(m[0] * a + m[1] * b + m[2] * c + m[3], 0.0f, 255.0f);
  }
}

// From pixels 0..255 to the network's numbers, for each channel.
struct Affine {
  float gain[3], offset[3];
};

// One pixel of the input tensor (batch, 3, height, width), or (batch, height, width, 3) where nhwc.
template <class T>
FN void preprocess_pixel(const Picture *pictures, T *out, i32 width, i32 height, i32 nhwc, Affine affine, float pad,
                         i32 x, i32 y, i32 frame) {
  const Picture *p = pictures + frame;
  float value[3] = {pad, pad, pad};
  i32 column = x - p->pad_x, row = y - p->pad_y;
  if (column >= 0 && row >= 0 && column < p->content_width && row < p->content_height) fetch(p, column, row, value);
  u64 area = (u64)width * height, pixel = (u64)y * width + x, step = nhwc ? 1 : area;
  T *at = out + (u64)frame * 3 * area;
  u64 index = nhwc ? pixel * 3 : pixel;
  for (i32 i = 0; i < 3; i++) put(at, index + i * step, value[i] * affine.gain[i] + affine.offset[i]);
}

// ------------------------------------------------------------------------------------------------------------ decode

enum { MAX_OUTPUTS = 8, MAX_ANCHORS = 8 };
enum { FLOAT32 = 0, FLOAT16 = 1 };

// One box above the threshold. `order` is its place in the NumPy head's output: sorting by it makes the result, and
// what NMS does with equal scores, independent of which thread came first.
struct Candidate {
  float x1, y1, x2, y2, score;
  i32 class_id;
  u32 order;
  u32 unused;
};

struct Output {
  u64 data;
  i32 type;
  i32 first;  // rows of the outputs before this one
  i32 anchors, rows, columns;
  i32 cell_step, value_step;  // elements from one cell of an anchor to the next, and from one value of a cell to the next
  float stride;
  float size[MAX_ANCHORS][2];  // anchor width and height, pixels
};

struct Decode {
  u64 counts;      // u32 a frame, may grow past `capacity`
  u64 candidates;  // `capacity` Candidates a frame
  i32 capacity;
  i32 outputs;
  i32 total;  // rows a frame, all outputs together
  i32 classes;
  i32 multi_label;
  float conf;
  float conf_logit;
  i32 filtered;  // behind the structure follow `classes` floats: the lowest score of each class
  Output output[MAX_OUTPUTS];
};

// Whether a box can be: heads/validate.py's numbers and rules, but for what lies outside the picture. False for NaN.
FN bool possible(float x1, float y1, float x2, float y2, float score) {
  const float farthest = 1048576.0f, least = 1e-3f;
  return x1 > -farthest && y1 > -farthest && x2 < farthest && y2 < farthest && x2 > x1 + least && y2 > y1 + least &&
         score >= 0.0f && score <= 1.001f;
}

FN void emit(const Decode *d, i32 frame, float x1, float y1, float x2, float y2, float score, i32 class_id,
             u32 order) {
  if (d->filtered && !(score >= ((const float *)(d + 1))[class_id])) return;
  u32 index = next_index((u32 *)d->counts + frame);
  if (index >= (u32)d->capacity) return;
  // What cannot be is for the host to count and to leave out. It comes last, and is of no class: it suppresses nothing.
  if (!possible(x1, y1, x2, y2, score)) {
    score = 0.0f;
    class_id = -1;
  }
  Candidate *c = (Candidate *)d->candidates + (u64)frame * d->capacity + index;
  c->x1 = x1;
  c->y1 = y1;
  c->x2 = x2;
  c->y2 = y2;
  c->score = score;
  c->class_id = class_id;
  c->order = order;
  c->unused = 0;
}

FN void emit_centred(const Decode *d, i32 frame, float cx, float cy, float w, float h, float score, i32 class_id,
                     u32 row) {
  w *= 0.5f;
  h *= 0.5f;
  emit(d, frame, cx - w, cy - h, cx + w, cy + h, score, class_id, row * (u32)d->classes + (u32)class_id);
}

FN float sigmoid(float v) { return 1.0f / (1.0f + expf(-clamp(v, -80.0f, 80.0f))); }

// Every class at or above the threshold, or the best one where only one is asked for. `Score` maps a class to its score.
template <class Score>
FN void emit_classes(const Decode *d, i32 frame, float cx, float cy, float w, float h, u32 row, const Score &score) {
  float best = -1.0f;
  i32 best_class = 0;
  for (i32 c = 0; c < d->classes; c++) {
    float s = score(c);
    if (d->multi_label) {
      if (s >= d->conf) emit_centred(d, frame, cx, cy, w, h, s, c, row);
    } else if (s > best) {
      best = s;
      best_class = c;
    }
  }
  if (!d->multi_label && best >= d->conf) emit_centred(d, frame, cx, cy, w, h, best, best_class, row);
}

template <class T>
struct LogitScore {
  const T *classes;
  u64 step;
  float objectness;
  FN_MEMBER float operator()(i32 c) const { return sigmoid(to_float(classes[c * step])) * objectness; }
};

template <class T>
struct ProbabilityScore {
  const T *classes;
  u64 step;
  float objectness;
  FN_MEMBER float operator()(i32 c) const { return to_float(classes[c * step]) * objectness; }
};

// The box of one cell of a head, from the sigmoids of x, y, w and h.
template <class Score>
FN void emit_cell(const Decode *d, const Output *o, i32 frame, i32 cell, float x, float y, float w, float h,
                  const Score &score) {
  i32 column = cell % o->columns, row = cell / o->columns % o->rows, anchor = cell / (o->columns * o->rows);
  float cx = (x * 2.0f - 0.5f + column) * o->stride, cy = (y * 2.0f - 0.5f + row) * o->stride;
  w *= 2.0f;
  h *= 2.0f;
  emit_classes(d, frame, cx, cy, w * w * o->size[anchor][0], h * h * o->size[anchor][1], (u32)(o->first + cell), score);
}

// (batch, anchors, rows, columns, 5 + classes), or (batch, anchors * (5 + classes), rows, columns), where a warp reads
// neighbours; logits.
template <class T>
FN void yolov5_heads_cell(const Decode *d, const Output *o, i32 frame, i32 cell) {
  i32 area = o->rows * o->columns, anchor = cell / area;
  u64 step = (u64)o->value_step;
  const T *v = (const T *)o->data + ((u64)frame * o->anchors + anchor) * (u64)area * (5 + d->classes) +
               (u64)(cell - anchor * area) * o->cell_step;
  float logit = to_float(v[4 * step]);
  if (!(logit >= d->conf_logit)) return;
  LogitScore<T> score = {v + 5 * step, step, sigmoid(logit)};
  emit_cell(d, o, frame, cell, sigmoid(to_float(v[0])), sigmoid(to_float(v[step])), sigmoid(to_float(v[2 * step])),
            sigmoid(to_float(v[3 * step])), score);
}

// (batch, total, 5 + classes): all heads in one tensor, each (anchors, rows, columns) of it, after a sigmoid.
template <class T>
FN void yolov5_sigmoid_cell(const Decode *d, const Output *o, i32 frame, i32 cell) {
  const T *v = (const T *)o->data + ((u64)frame * d->total + o->first + cell) * (5 + d->classes);
  float objectness = to_float(v[4]);
  if (!(objectness >= d->conf)) return;
  ProbabilityScore<T> score = {v + 5, 1, objectness};
  emit_cell(d, o, frame, cell, to_float(v[0]), to_float(v[1]), to_float(v[2]), to_float(v[3]), score);
}

// (batch, total, 5 + classes), decoded.
template <class T>
FN void yolov5_cat_row(const Decode *d, i32 frame, i32 row) {
  const T *v = (const T *)d->output[0].data + ((u64)frame * d->total + row) * (5 + d->classes);
  float objectness = to_float(v[4]);
  if (!(objectness >= d->conf)) return;
  ProbabilityScore<T> score = {v + 5, 1, objectness};
  emit_classes(d, frame, to_float(v[0]), to_float(v[1]), to_float(v[2]), to_float(v[3]), (u32)row, score);
}

// (batch, 4 + classes, total), decoded, no objectness.
template <class T>
FN void yolov8_column(const Decode *d, i32 frame, i32 column) {
  u64 step = (u64)d->total;
  const T *v = (const T *)d->output[0].data + (u64)frame * (4 + d->classes) * step + column;
  ProbabilityScore<T> score = {v + 4 * step, step, 1.0f};
  emit_classes(d, frame, to_float(v[0]), to_float(v[step]), to_float(v[2 * step]), to_float(v[3 * step]), (u32)column,
               score);
}

// (batch, total, 6), suppressed already: a class the labels do not know is padding.
template <class T>
FN void end_to_end_row(const Decode *d, i32 frame, i32 row) {
  const T *v = (const T *)d->output[0].data + ((u64)frame * d->total + row) * 6;
  float score = to_float(v[4]), class_id = to_float(v[5]);
  if (!(score >= d->conf) || !(class_id >= 0.0f) || !(class_id < (float)d->classes)) return;
  emit(d, frame, to_float(v[0]), to_float(v[1]), to_float(v[2]), to_float(v[3]), score, (i32)class_id, (u32)row);
}

// Of several heads, the one that holds the row.
#define BY_HEAD(NAME, CELL)                                 \
  FN void NAME(const Decode *d, i32 frame, i32 item) {      \
    i32 i = d->outputs - 1;                                 \
    while (item < d->output[i].first) i--;                  \
    const Output *o = d->output + i;                        \
    if (o->type == FLOAT16)                                 \
      CELL<half_bits>(d, o, frame, item - o->first);        \
    else                                                    \
      CELL<float>(d, o, frame, item - o->first);            \
  }
BY_HEAD(yolov5_heads_item, yolov5_heads_cell)
BY_HEAD(yolov5_sigmoid_item, yolov5_sigmoid_cell)

#define BY_TYPE(NAME, ROW)                              \
  FN void NAME(const Decode *d, i32 frame, i32 item) {  \
    if (d->output[0].type == FLOAT16)                   \
      ROW<half_bits>(d, frame, item);                   \
    else                                                \
      ROW<float>(d, frame, item);                       \
  }
BY_TYPE(yolov5_cat_item, yolov5_cat_row)
BY_TYPE(yolov8_item, yolov8_column)
BY_TYPE(end_to_end_item, end_to_end_row)

// ---------------------------------------------------------------------------------------------------------- suppress

enum { BEST = 4096 };  // candidates looked at, best first: heads/nms.py's MAX_CANDIDATES

// Greedy non-maximum suppression of each frame's candidates, as heads/nms.py does it.
struct Suppress {
  u64 counts;      // u32 a frame: candidates found, as decoding left them
  u64 candidates;  // `capacity` Candidates a frame, in any order
  u64 kept;        // u32 a frame: boxes left
  u64 boxes;       // a frame: `max_kept` boxes of four floats, as many scores, as many class numbers
  u64 ranked;      // scratch a frame: `best` each of x1, y1, x2, y2, score, class
  u64 keys;        // scratch a frame: `keys_size` u64s; none where the block's own suffice
  i32 capacity;
  i32 best;  // the lesser of capacity and BEST
  i32 keys_size;
  i32 max_kept;
  i32 agnostic;
  i32 unused;
  double iou;
};

struct Workspace {
  u64 keys[BEST];
  u64 dropped[BEST / 8];  // a byte a box
};

struct Ranked {
  float *x1, *y1, *x2, *y2, *score;
  i32 *class_id;
};

// Upper half: rises as the score falls. Lower half: the candidate's index.
FN u64 sort_key(float score, u32 index) {
  u32 bits = float_bits(score + 0.0f);  // -0 is 0
  return (u64)(bits & 0x80000000u ? bits : ~bits & 0x7fffffffu) << 32 | index;
}

// Whether a comes after b: by score, then by place in the head's output. Padding, of a score that no number has, is last.
FN bool after(u64 a, u64 b, const Candidate *c) {
  u32 score_a = (u32)(a >> 32), score_b = (u32)(b >> 32);
  if (score_a != score_b) return score_a > score_b;
  return score_a != 0xffffffffu && c[(u32)a].order > c[(u32)b].order;
}

// Bitonic sort (Batcher 1968) of `size` keys, a power of two.
FN void sort_keys(u64 *keys, u32 size, const Candidate *c, u32 thread, u32 threads) {
  for (u32 run = 2; run <= size; run *= 2)
    for (u32 step = run / 2; step > 0; step /= 2) {
      for (u32 i = thread; i < size / 2; i += threads) {
        u32 low = 2 * i - (i & (step - 1)), high = low + step;
        u64 a = keys[low], b = keys[high];
        if (low & run ? after(b, a, c) : after(a, b, c)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      SYNC();
    }
}

// The first box from `from` on that was not dropped, or one past the last word.
FN u32 next_standing(const u64 *dropped, u32 from, u32 count) {
  while (from < count) {
    u64 standing = ~dropped[from / 8] & (0x0101010101010101ull << (8 * (from % 8)));
    if (standing) return from / 8 * 8 + lowest_bit(standing) / 8;
    from = from / 8 * 8 + 8;
  }
  return from;
}

FN float area_of(float width, float height) { return width * height; }
FN double area_of(double width, double height) { return rounded_product(width, height); }

template <class F>
FN void intersect(F ax1, F ay1, F ax2, F ay2, F bx1, F by1, F bx2, F by2, F *overlap, F *all) {
  F width = (ax2 < bx2 ? ax2 : bx2) - (ax1 > bx1 ? ax1 : bx1);
  F height = (ay2 < by2 ? ay2 : by2) - (ay1 > by1 ? ay1 : by1);
  *overlap = area_of(width > 0 ? width : 0, height > 0 ? height : 0);
  *all = area_of(ax2 - ax1, ay2 - ay1) + area_of(bx2 - bx1, by2 - by1) - *overlap;
}

// Whether the intersection over union of two boxes exceeds `iou`. Single precision is off by less than 1e-6 of the
// union; where that might decide, double precision does, as on the host.
FN bool overlaps(const Ranked &r, u32 a, u32 b, double iou) {
  float ax1 = r.x1[a], ay1 = r.y1[a], ax2 = r.x2[a], ay2 = r.y2[a];
  float bx1 = r.x1[b], by1 = r.y1[b], bx2 = r.x2[b], by2 = r.y2[b];
  float overlap, all;
  intersect<float>(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, &overlap, &all);
  float excess = overlap - (float)iou * all;
  if (fabsf(excess) > 1e-5f * all) return excess > 0.0f;
  double exact_overlap, exact_all;
  intersect<double>(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, &exact_overlap, &exact_all);
  return !(exact_overlap <= rounded_product(iou, exact_all));
}

// One thread's share of a frame; the threads of a block run it together.
FN void suppress_frame(const Suppress *s, Workspace *w, u32 frame, u32 thread, u32 threads) {
  const Candidate *c = (const Candidate *)s->candidates + (u64)frame * s->capacity;
  u32 count = ((const u32 *)s->counts)[frame];
  if (count > (u32)s->capacity) count = s->capacity;
  u32 size = 1;
  while (size < count) size *= 2;
  u64 *keys = size <= BEST ? w->keys : (u64 *)s->keys + (u64)frame * s->keys_size;
  for (u32 i = thread; i < size; i += threads) keys[i] = i < count ? sort_key(c[i].score, i) : ~0ull;
  SYNC();
  sort_keys(keys, size, c, thread, threads);

  u32 best = s->best;
  if (count > best) count = best;
  Ranked r;
  r.x1 = (float *)s->ranked + (u64)frame * 6 * best;
  r.y1 = r.x1 + best;
  r.x2 = r.y1 + best;
  r.y2 = r.x2 + best;
  r.score = r.y2 + best;
  r.class_id = (i32 *)(r.score + best);
  u8 *dropped = (u8 *)w->dropped;
  for (u32 i = thread; i < (count + 7) / 8 * 8; i += threads) {
    dropped[i] = i >= count;
    if (i >= count) continue;
    const Candidate *from = c + (u32)keys[i];
    r.x1[i] = from->x1;
    r.y1[i] = from->y1;
    r.x2[i] = from->x2;
    r.y2[i] = from->y2;
    r.score[i] = from->score;
    r.class_id[i] = from->class_id;
  }
  SYNC();

  u32 kept = 0, most = s->max_kept;
  float *corners = (float *)s->boxes + (u64)frame * 6 * most, *scores = corners + 4 * (u64)most;
  i32 *classes = (i32 *)(scores + most);
  for (u32 i = next_standing(w->dropped, 0, count); i < count && kept < most; kept++) {
    i32 class_id = r.class_id[i];
    if (thread == 0) {
      corners[4 * kept] = r.x1[i];
      corners[4 * kept + 1] = r.y1[i];
      corners[4 * kept + 2] = r.x2[i];
      corners[4 * kept + 3] = r.y2[i];
      scores[kept] = r.score[i];
      classes[kept] = class_id;
    }
    // What is of no class cannot be: see `emit`.
    for (u32 j = i + 1 + thread; class_id >= 0 && j < count; j += threads) {
      bool rivals = r.class_id[j] == class_id || (s->agnostic && r.class_id[j] >= 0);
      if (!dropped[j] && rivals && overlaps(r, i, j, s->iou)) dropped[j] = 1;
    }
    // Once is enough: whoever is ahead changes only what lies behind the next standing box, which all find alike.
    SYNC();
    i = next_standing(w->dropped, i + 1, count);
  }
  if (thread == 0) ((u32 *)s->kept)[frame] = kept;
}

// ------------------------------------------------------------------------------------------------------------ glance

// analysis/glance/picture.py has the same numbers, and the reference in NumPy.
enum { CELL_ROWS = 90, CELL_COLUMNS = 160, MOST_ROWS = 4, MOST_SURFACES = 64 };

// The luma of one frame where the decoder left it; glance.c has the same.
struct Surface {
  u64 luma;
  i32 pitch;  // bytes
  i32 width, height;
  i32 sample;  // bytes of one, 1 or 2
  i32 shift;   // bits by which one exceeds 8
  i32 unused;
};
struct Surfaces {
  Surface of[MOST_SURFACES];
};

// The sum of the samples in a word.
FN u32 samples_of(u32 word, u8) {
  word = (word & 0x00ff00ffu) + (word >> 8 & 0x00ff00ffu);
  return (word & 0xffffu) + (word >> 16);
}
FN u32 samples_of(u32 word, u16) { return (word & 0xffffu) + (word >> 16); }

// The sum of the samples of a cell: columns [left, right) of the middle rows of `n` equal parts of `tall` rows; of
// MOST_ROWS rows where FULL. No sample outside the cell is read.
template <class T, bool FULL>
FN u32 sum_cell(const Surface &s, i32 top, i32 tall, i32 n, i32 left, i32 right) {
  const i32 each = 4 / (i32)sizeof(T);
  const i32 rows = FULL ? (i32)MOST_ROWS : n;
  const T *row[MOST_ROWS];
  for (i32 i = 0; i < MOST_ROWS; i++)
    row[i] = (const T *)(s.luma + (u64)(top + (2 * i + 1) * tall / (2 * rows)) * (u64)s.pitch);
  bool aligned = ((s.luma | (u64)s.pitch) & 3) == 0;
  i32 begin = aligned ? (left + each - 1) / each * each : right;
  if (begin > right) begin = right;
  i32 end = right / each * each;
  if (end < begin) end = begin;
  u32 sum = 0;
  // Of all rows at once: none of these loads waits for another one.
  for (i32 x = begin; x < end; x += each)
    for (i32 i = 0; i < MOST_ROWS; i++)
      if (FULL || i < rows) sum += samples_of(*(const u32 *)(row[i] + x), T());
  ROLLED
  for (i32 x = left; x < begin; x++)
    for (i32 i = 0; i < MOST_ROWS; i++)
      if (FULL || i < rows) sum += row[i][x];
  ROLLED
  for (i32 x = end; x < right; x++)
    for (i32 i = 0; i < MOST_ROWS; i++)
      if (FULL || i < rows) sum += row[i][x];
  return sum;
}

template <class T>
FN u32 sum_cell(const Surface &s, i32 top, i32 tall, i32 n, i32 left, i32 right) {
  if (n == MOST_ROWS) return sum_cell<T, true>(s, top, tall, n, left, right);
  return sum_cell<T, false>(s, top, tall, n, left, right);
}

// One cell of a frame's small picture: the rounded mean of its area. 32 bits hold the sum of a cell of up to 8,000 columns.
FN void glance_cell(const Surface &s, u8 *cells, i32 r, i32 c) {
  i32 top = r * s.height / CELL_ROWS, tall = (r + 1) * s.height / CELL_ROWS - top;
  i32 left = c * s.width / CELL_COLUMNS, right = (c + 1) * s.width / CELL_COLUMNS;
  // A frame of fewer pixels than cells repeats them.
  if (tall < 1) tall = 1;
  if (right <= left) right = left + 1;
  i32 n = tall < MOST_ROWS ? tall : MOST_ROWS;
  u32 sum = s.sample == 1 ? sum_cell<u8>(s, top, tall, n, left, right) : sum_cell<u16>(s, top, tall, n, left, right);
  u32 count = (u32)(n * (right - left)) << s.shift;
  u32 mean = (2 * sum + count) / (2 * count);
  cells[r * CELL_COLUMNS + c] = (u8)(mean < 255 ? mean : 255);
}

// ------------------------------------------------------------------------------------------- entry points, both homes

#ifdef STREAMD_DEVICE

// Grid: pixels in x and y, frames in z.
#define PREPROCESS(NAME, TYPE)                                                                                         \
  extern "C" __global__ void preprocess_##NAME(const Picture *pictures, TYPE *out, i32 width, i32 height, i32 nhwc,    \
                                               Affine affine, float pad) {                                             \
    i32 x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;                          \
    if (x < width && y < height)                                                                                       \
      preprocess_pixel(pictures, out, width, height, nhwc, affine, pad, x, y, blockIdx.z);                             \
  }
// Grid: rows in x, frames in y.
#define DECODE(NAME)                                                            \
  extern "C" __global__ void decode_##NAME(const Decode *d) {                   \
    i32 item = blockIdx.x * blockDim.x + threadIdx.x;                           \
    if (item < d->total) NAME##_item(d, blockIdx.y, item);                      \
  }
// Grid: frames in x.
extern "C" __global__ void suppress(const Suppress *s) {
  __shared__ Workspace workspace;
  suppress_frame(s, &workspace, blockIdx.x, threadIdx.x, blockDim.x);
}
// Grid: rows of cells in x, frames in y; a thread for each column of cells.
extern "C" __global__ void glance(u8 *cells, const Surfaces surfaces) {
  const Surface s = surfaces.of[blockIdx.y];
  glance_cell(s, cells + (u64)blockIdx.y * (CELL_ROWS * CELL_COLUMNS), blockIdx.x, threadIdx.x);
}

#else

#define PREPROCESS(NAME, TYPE)                                                                                    \
  extern "C" void preprocess_##NAME(const Picture *pictures, TYPE *out, i32 width, i32 height, i32 nhwc,          \
                                    Affine affine, float pad, i32 frames) {                                       \
    for (i32 f = 0; f < frames; f++)                                                                              \
      for (i32 y = 0; y < height; y++)                                                                            \
        for (i32 x = 0; x < width; x++) preprocess_pixel(pictures, out, width, height, nhwc, affine, pad, x, y, f); \
  }
// Last row first, so that a test notices an order that comes from the threads.
#define DECODE(NAME)                                                            \
  extern "C" void decode_##NAME(const Decode *d, i32 frames) {                  \
    for (i32 f = 0; f < frames; f++)                                            \
      for (i32 item = d->total - 1; item >= 0; item--) NAME##_item(d, f, item); \
  }
extern "C" void suppress(const Suppress *s, i32 frames) {
  Workspace workspace;
  for (i32 f = 0; f < frames; f++) suppress_frame(s, &workspace, f, 0, 1);
}
extern "C" void glance(u8 *cells, const Surface *surfaces, i32 frames) {
  for (i32 f = 0; f < frames; f++)
    for (i32 r = 0; r < CELL_ROWS; r++)
      for (i32 c = 0; c < CELL_COLUMNS; c++)
        glance_cell(surfaces[f], cells + (u64)f * (CELL_ROWS * CELL_COLUMNS), r, c);
}
extern "C" u16 host_float_to_half(float f) { return float_to_half(f); }
extern "C" float host_half_to_float(u16 h) { return half_to_float(h); }
extern "C" i32 size_of_picture(void) { return (i32)sizeof(Picture); }
extern "C" i32 size_of_decode(void) { return (i32)sizeof(Decode); }
extern "C" i32 size_of_candidate(void) { return (i32)sizeof(Candidate); }
extern "C" i32 most_candidates(void) { return BEST; }
extern "C" i32 size_of_surfaces(void) { return (i32)sizeof(Surfaces); }
extern "C" i32 size_of_suppress(void) { return (i32)sizeof(Suppress); }

#endif

PREPROCESS(float32, float)
PREPROCESS(float16, half_bits)
PREPROCESS(uint8, u8)
PREPROCESS(int8, i8)
DECODE(yolov5_heads)
DECODE(yolov5_cat)
DECODE(yolov5_sigmoid)
DECODE(yolov8)
DECODE(end_to_end)
