// The device code of streamd: letterboxing before the network, box decoding after it.
//
// Everything is written as plain functions of one pixel or one output row, so that a C++ compiler builds the same code
// for the host, where tests compare it with the NumPy reference: see the two sections at the end. The structures are
// filled by kernels.py and decode.py, field by field; a change here is a change there.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define STREAMD_DEVICE 1
#define FN __device__ __forceinline__
#define FN_MEMBER __device__ __forceinline__
#else
#include <math.h>
#include <string.h>
#define FN static inline
#define FN_MEMBER inline
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

// One pixel of the input tensor (batch, 3, height, width), or (batch, height, width, 3) where nhwc.
template <class T>
FN void preprocess_pixel(const Picture *pictures, T *out, i32 width, i32 height, i32 nhwc, float scale, float pad,
                         i32 x, i32 y, i32 frame) {
  const Picture *p = pictures + frame;
  float value[3] = {pad, pad, pad};
  i32 column = x - p->pad_x, row = y - p->pad_y;
  if (column >= 0 && row >= 0 && column < p->content_width && row < p->content_height) fetch(p, column, row, value);
  u64 area = (u64)width * height, pixel = (u64)y * width + x, step = nhwc ? 1 : area;
  T *at = out + (u64)frame * 3 * area;
  u64 index = nhwc ? pixel * 3 : pixel;
  for (i32 i = 0; i < 3; i++) put(at, index + i * step, value[i] * scale);
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
  i32 unused;
  Output output[MAX_OUTPUTS];
};

FN void emit(const Decode *d, i32 frame, float x1, float y1, float x2, float y2, float score, i32 class_id,
             u32 order) {
  u32 index = next_index((u32 *)d->counts + frame);
  if (index >= (u32)d->capacity) return;
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
  float objectness;
  FN_MEMBER float operator()(i32 c) const { return sigmoid(to_float(classes[c])) * objectness; }
};

template <class T>
struct ProbabilityScore {
  const T *classes;
  u64 step;
  float objectness;
  FN_MEMBER float operator()(i32 c) const { return to_float(classes[c * step]) * objectness; }
};

// (batch, anchors, rows, columns, 5 + classes), logits.
template <class T>
FN void yolov5_heads_cell(const Decode *d, const Output *o, i32 frame, i32 cell) {
  i32 per_frame = o->anchors * o->rows * o->columns;
  const T *v = (const T *)o->data + ((u64)frame * per_frame + cell) * (5 + d->classes);
  float logit = to_float(v[4]);
  if (!(logit >= d->conf_logit)) return;
  i32 column = cell % o->columns, row = cell / o->columns % o->rows, anchor = cell / (o->columns * o->rows);
  float cx = (sigmoid(to_float(v[0])) * 2.0f - 0.5f + column) * o->stride;
  float cy = (sigmoid(to_float(v[1])) * 2.0f - 0.5f + row) * o->stride;
  float w = sigmoid(to_float(v[2])) * 2.0f, h = sigmoid(to_float(v[3])) * 2.0f;
  LogitScore<T> score = {v + 5, sigmoid(logit)};
  emit_classes(d, frame, cx, cy, w * w * o->size[anchor][0], h * h * o->size[anchor][1], (u32)(o->first + cell), score);
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

FN void yolov5_heads_item(const Decode *d, i32 frame, i32 item) {
  i32 i = d->outputs - 1;
  while (item < d->output[i].first) i--;
  const Output *o = d->output + i;
  if (o->type == FLOAT16)
    yolov5_heads_cell<half_bits>(d, o, frame, item - o->first);
  else
    yolov5_heads_cell<float>(d, o, frame, item - o->first);
}

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

// ------------------------------------------------------------------------------------------- entry points, both homes

#ifdef STREAMD_DEVICE

// Grid: pixels in x and y, frames in z.
#define PREPROCESS(NAME, TYPE)                                                                                    \
  extern "C" __global__ void preprocess_##NAME(const Picture *pictures, TYPE *out, i32 width, i32 height,         \
                                               i32 nhwc, float scale, float pad) {                                \
    i32 x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;                     \
    if (x < width && y < height) preprocess_pixel(pictures, out, width, height, nhwc, scale, pad, x, y, blockIdx.z); \
  }
// Grid: rows in x, frames in y.
#define DECODE(NAME)                                                            \
  extern "C" __global__ void decode_##NAME(const Decode *d) {                   \
    i32 item = blockIdx.x * blockDim.x + threadIdx.x;                           \
    if (item < d->total) NAME##_item(d, blockIdx.y, item);                      \
  }

#else

#define PREPROCESS(NAME, TYPE)                                                                                   \
  extern "C" void preprocess_##NAME(const Picture *pictures, TYPE *out, i32 width, i32 height, i32 nhwc,         \
                                    float scale, float pad, i32 frames) {                                        \
    for (i32 f = 0; f < frames; f++)                                                                             \
      for (i32 y = 0; y < height; y++)                                                                           \
        for (i32 x = 0; x < width; x++) preprocess_pixel(pictures, out, width, height, nhwc, scale, pad, x, y, f); \
  }
// Last row first, so that a test notices an order that comes from the threads.
#define DECODE(NAME)                                                            \
  extern "C" void decode_##NAME(const Decode *d, i32 frames) {                  \
    for (i32 f = 0; f < frames; f++)                                            \
      for (i32 item = d->total - 1; item >= 0; item--) NAME##_item(d, f, item); \
  }
extern "C" u16 host_float_to_half(float f) { return float_to_half(f); }
extern "C" float host_half_to_float(u16 h) { return half_to_float(h); }
extern "C" i32 size_of_picture(void) { return (i32)sizeof(Picture); }
extern "C" i32 size_of_decode(void) { return (i32)sizeof(Decode); }
extern "C" i32 size_of_candidate(void) { return (i32)sizeof(Candidate); }

#endif

PREPROCESS(float32, float)
PREPROCESS(float16, half_bits)
PREPROCESS(uint8, u8)
PREPROCESS(int8, i8)
DECODE(yolov5_heads)
DECODE(yolov5_cat)
DECODE(yolov8)
DECODE(end_to_end)
