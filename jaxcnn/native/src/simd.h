// Vectors of floats by the compiler's vector extensions, as wide as those of the instruction set of this compilation.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;  // rows of a register tile; each takes kVectors vector registers and an address
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;  // rows that take 12 of the 16 vector registers
#elif defined(__ARM_NEON)
constexpr int kLanes = 4;
constexpr int kRows = 12;
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif
constexpr int kVectors = 2;                  // vectors in a row of a register tile
constexpr int kColumns = kLanes * kVectors;  // floats in a row of a register tile

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef int32_t UnalignedIntVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define JAXCNN_INLINE inline __attribute__((always_inline))

JAXCNN_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
JAXCNN_INLINE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
JAXCNN_INLINE constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Returns the beginning of a part, where `count` things are cut into parts of nearly one size. The larger parts come
// first, so that all threads end at about one time.
inline int64_t part_begin(int64_t count, int64_t parts, int64_t part) {
  return count / parts * part + least(count % parts, part);
}

JAXCNN_INLINE Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
JAXCNN_INLINE void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }
JAXCNN_INLINE Vec splat(float value) { return value - Vec{}; }

// Returns a * b + c with the same rounding wherever this is inlined; the compiler may round a plain expression once or
// twice.
JAXCNN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Copies between 1 and 2 blocks of kBytes, which may overlap.
template <int kBytes>
JAXCNN_INLINE void copy_two(float* to, const float* from, int64_t count) {
  char first[kBytes], last[kBytes];
  const int64_t rest = count * 4 - kBytes;
  __builtin_memcpy(first, from, kBytes);
  __builtin_memcpy(last, reinterpret_cast<const char*>(from) + rest, kBytes);
  __builtin_memcpy(to, first, kBytes);
  __builtin_memcpy(reinterpret_cast<char*>(to) + rest, last, kBytes);
}

// Copies `count` floats and touches no other memory.
JAXCNN_INLINE void copy(float* to, const float* from, int64_t count) {
  if (count >= kLanes) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store(to + count - kLanes, load(from + count - kLanes));
  } else if (count >= 8) {
    copy_two<32>(to, from, count);
  } else if (count >= 4) {
    copy_two<16>(to, from, count);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

// Loads and stores of the first `count` lanes. A sanitizer does not see what a mask leaves out.
#if defined(__AVX512F__) && !JAXCNN_SANITIZE
JAXCNN_INLINE __mmask16 mask_of(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
JAXCNN_INLINE Vec load_some(const float* from, int64_t count) {
  return count >= kLanes ? load(from) : (Vec)_mm512_maskz_loadu_ps(mask_of(count), from);
}
JAXCNN_INLINE void store_some(float* to, Vec value, int64_t count) {
  count >= kLanes ? store(to, value) : _mm512_mask_storeu_ps(to, mask_of(count), (__m512)value);
}
#elif defined(__AVX2__) && !JAXCNN_SANITIZE
JAXCNN_INLINE __m256i mask_of(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
JAXCNN_INLINE Vec load_some(const float* from, int64_t count) {
  return count >= kLanes ? load(from) : (Vec)_mm256_maskload_ps(from, mask_of(count));
}
JAXCNN_INLINE void store_some(float* to, Vec value, int64_t count) {
  if (count >= kLanes) return store(to, value);
  // A masked store is slow on some processors.
  float lanes[kLanes];
  store(lanes, value);
  copy(to, lanes, count);
}
#else
JAXCNN_INLINE Vec load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  float lanes[kLanes] = {};
  std::memcpy(lanes, from, sizeof(float) * count);
  return load(lanes);
}
JAXCNN_INLINE void store_some(float* to, Vec value, int64_t count) {
  if (count >= kLanes) {
    store(to, value);
    return;
  }
  float lanes[kLanes];
  store(lanes, value);
  std::memcpy(to, lanes, sizeof(float) * count);
}
#endif

JAXCNN_INLINE Vec permute(Vec value, IntVec index) {
#if defined(__clang__)
  Vec result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = value[index[lane]];
  return result;
#else
  return __builtin_shuffle(value, index);
#endif
}

// Swaps the halves of pairs of rows that lie across the diagonal: with steps of kLanes / 2 down to 1 a transposition.
template <int kStep>
JAXCNN_INLINE void exchange(Vec (&rows)[kLanes]) {
  IntVec low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane & kStep ? kLanes + lane - kStep : lane;
    high[lane] = lane & kStep ? kLanes + lane : lane + kStep;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if (r & kStep) continue;
    const Vec a = rows[r], b = rows[r + kStep];
#if defined(__clang__)
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[r][lane] = lane & kStep ? b[lane - kStep] : a[lane];
      rows[r + kStep][lane] = lane & kStep ? b[lane] : a[lane + kStep];
    }
#else
    rows[r] = __builtin_shuffle(a, b, low);
    rows[r + kStep] = __builtin_shuffle(a, b, high);
#endif
  }
}

JAXCNN_INLINE void transpose(Vec (&rows)[kLanes]) {
  if constexpr (kLanes >= 16) exchange<8>(rows);
  if constexpr (kLanes >= 8) exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

JAXCNN_INLINE void clear(float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, Vec{});
  for (; i < count; ++i) to[i] = 0.0f;
}

// Lane-wise choice: `mask` is all ones or all zeros in each lane, as a comparison gives it.
JAXCNN_INLINE Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }

// Return max(x, low) and min(x, high), in which NaN wins, as in XLA. In this order each is one instruction.
JAXCNN_INLINE Vec at_least(Vec x, float low) { return select(splat(low) > x, splat(low), x); }
JAXCNN_INLINE Vec at_most(Vec x, float high) { return select(splat(high) < x, splat(high), x); }

// Returns exp(x) for x at most 0, to within 2 units in the last place; below -87.7 it is 0, and NaN stays NaN.
JAXCNN_INLINE Vec exponential(Vec x) {
  const Vec clamped = at_least(x, -88.0f);  // its power of two is 2^-127, whose bits are those of 0
  // Adding 1.5 * 2^23 rounds to the nearest whole number, which the last bits of the sum hold.
  const Vec magic = splat(12582912.0f), shifted = clamped * 1.44269504f + magic, rounded = shifted - magic;
  const Vec rest = (clamped - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  // The polynomial with the least relative error on [-ln(2) / 2, ln(2) / 2] among those that begin with 1 + x.
  Vec sum = splat(8.31252057e-3f);
  sum = sum * rest + 4.18901592e-2f;
  sum = sum * rest + 1.66671142e-1f;
  sum = sum * rest + 4.99992311e-1f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  return sum * (Vec)(((IntVec)shifted << 23) + (127 << 23));
}

// Returns -|x|.
JAXCNN_INLINE Vec negative(Vec x) { return (Vec)((IntVec)x | INT32_MIN); }

JAXCNN_INLINE Vec sigmoid(Vec x) {
  const Vec power = exponential(negative(x));
  return select(x < 0.0f, power, splat(1.0f)) / (1.0f + power);
}

// Returns tanh(x) = sign(x) (1 - p) / (1 + p) with p = exp(-2 |x|); near 0, where this loses digits, the odd series.
JAXCNN_INLINE Vec hyperbolic_tangent(Vec x) {
  const Vec size = -negative(x), power = exponential(-2.0f * size);
  const Vec far = (1.0f - power) / (1.0f + power);
  const Vec square = x * x;
  Vec near = splat(-1382.0f / 155925.0f);
  near = near * square + 62.0f / 2835.0f;
  near = near * square - 17.0f / 315.0f;
  near = near * square + 2.0f / 15.0f;
  near = near * square - 1.0f / 3.0f;
  near = (near * square) * x + x;
  return select(size < 0.25f, near, select(x < 0.0f, -far, far));
}

// Returns erf(x): the Maclaurin series below 1, and from 1 to 4 the polynomial in |x| - 1 for exp(x^2) erfc(|x|) with
// the least error of erf. The polynomial changes erf by less than 2e-8.
JAXCNN_INLINE Vec error_function(Vec x) {
  const Vec size = -negative(x);
  const Vec square = x * x;
  Vec near = Vec{};
  float factor[12];
  float factorial = 1.0f;
  for (int n = 0; n < 12; ++n) {
    if (n > 0) factorial *= static_cast<float>(n);
    factor[n] = (n % 2 ? -1.0f : 1.0f) / (factorial * static_cast<float>(2 * n + 1));
  }
  for (int n = 11; n >= 0; --n) near = near * square + factor[n];
  near = near * x * 1.12837917f;
  const Vec above = size - 1.0f;
  Vec far = splat(-3.8888383e-4f);
  far = far * above + 3.28293464e-3f;
  far = far * above - 1.31339707e-2f;
  far = far * above + 3.5608732e-2f;
  far = far * above - 7.86351275e-2f;
  far = far * above + 1.54286473e-1f;
  far = far * above - 2.73207563e-1f;
  far = far * above + 4.2758354e-1f;
  far = 1.0f - exponential(-square) * far;
  far = select(size > 4.0f, splat(1.0f), far);
  far = select(x < 0.0f, -far, far);
  return select(x == x, select(size < 1.0f, near, far), x);
}

template <Activation kActivation>
JAXCNN_INLINE Vec activate(Vec x, float alpha) {
  if constexpr (kActivation == Activation::kRelu) return at_least(x, 0.0f);
  if constexpr (kActivation == Activation::kRelu6) return at_most(at_least(x, 0.0f), 6.0f);
  if constexpr (kActivation == Activation::kLeakyRelu) return select(x >= 0.0f, x, x * alpha);
  if constexpr (kActivation == Activation::kSilu) return x * sigmoid(x);
  if constexpr (kActivation == Activation::kHardSwish) {
    return x * (at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f));
  }
  if constexpr (kActivation == Activation::kGeluTanh) {
    // (1 + tanh(u)) / 2 = sigmoid(2 u)
    return x * sigmoid(1.5957691216f * (x + 0.044715f * (x * x * x)));
  }
  if constexpr (kActivation == Activation::kGeluErf) return x * (0.5f * (1.0f + error_function(x * 0.7071067812f)));
  if constexpr (kActivation == Activation::kSigmoid) return sigmoid(x);
  if constexpr (kActivation == Activation::kTanh) return hyperbolic_tangent(x);
  if constexpr (kActivation == Activation::kHardSigmoid) {
    return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
  }
  return x;
}

// Applies an epilogue to `columns` results of each row, of the channels from `channel` on; the residual of a result
// lies as far from `epilogue.residual` as the result from `base`.
template <Activation kActivation>
__attribute__((noinline)) void finish_rows(float* const* rows, int64_t count, int64_t columns, int64_t channel,
                                           const float* base, const Epilogue& epilogue) {
  for (int64_t i = 0; i < columns; i += kLanes) {
    const int64_t lanes = columns - i < kLanes ? columns - i : kLanes;
    const Vec scale = epilogue.scale ? load_some(epilogue.scale + channel + i, lanes) : splat(1.0f);
    const Vec bias = epilogue.bias ? load_some(epilogue.bias + channel + i, lanes) : Vec{};
    for (int64_t r = 0; r < count; ++r) {
      float* const at = rows[r] + i;
      Vec value = load_some(at, lanes) * scale + bias;
      if (epilogue.residual) value = value + load_some(epilogue.residual + (at - base), lanes);
      store_some(at, activate<kActivation>(value, epilogue.alpha), lanes);
    }
  }
}

inline void finish(float* const* rows, int64_t count, int64_t columns, int64_t channel, const float* base,
                   const Epilogue& epilogue) {
  switch (epilogue.activation) {
#define JAXCNN_FINISH(name)                                                                         \
  case Activation::name:                                                                            \
    return finish_rows<Activation::name>(rows, count, columns, channel, base, epilogue);
    JAXCNN_FINISH(kNone)
    JAXCNN_FINISH(kRelu)
    JAXCNN_FINISH(kRelu6)
    JAXCNN_FINISH(kLeakyRelu)
    JAXCNN_FINISH(kSilu)
    JAXCNN_FINISH(kHardSwish)
    JAXCNN_FINISH(kGeluTanh)
    JAXCNN_FINISH(kGeluErf)
    JAXCNN_FINISH(kSigmoid)
    JAXCNN_FINISH(kTanh)
    JAXCNN_FINISH(kHardSigmoid)
#undef JAXCNN_FINISH
  }
}

// The steps of an epilogue for a run of channels, applied to sums that are still in registers.
struct RegisterSteps {
  const float* scale = nullptr;  // of the first channel
  const float* bias = nullptr;
  int64_t residual = 0;  // bytes from a result to its residual
  bool has_residual = false;
  float low = -__builtin_inff(), high = __builtin_inff();

  RegisterSteps() = default;
  RegisterSteps(const Epilogue& epilogue, int64_t channel, const float* base)
      : scale(epilogue.scale ? epilogue.scale + channel : nullptr),
        bias(epilogue.bias ? epilogue.bias + channel : nullptr),
        residual(reinterpret_cast<const char*>(epilogue.residual) - reinterpret_cast<const char*>(base)),
        has_residual(epilogue.residual),
        low(epilogue.activation == Activation::kNone ? -__builtin_inff() : 0.0f),
        high(epilogue.activation == Activation::kRelu6 ? 6.0f : __builtin_inff()) {}

  // Returns whether an epilogue has no other steps than these.
  static bool covers(const Epilogue& epilogue) {
    return epilogue.activation == Activation::kNone || epilogue.activation == Activation::kRelu ||
           epilogue.activation == Activation::kRelu6;
  }
  JAXCNN_INLINE Vec scales(int64_t channel, int64_t lanes) const {
    return scale ? load_some(scale + channel, lanes) : splat(1.0f);
  }
  JAXCNN_INLINE Vec biases(int64_t channel, int64_t lanes) const {
    return bias ? load_some(bias + channel, lanes) : Vec{};
  }
  // Returns the result of a sum; the result will be stored at `to`.
  JAXCNN_INLINE Vec apply(Vec sum, Vec scale, Vec bias, const float* to, int64_t lanes) const {
    sum = multiply_add(sum, scale, bias);
    if (has_residual) {
      sum += load_some(reinterpret_cast<const float*>(reinterpret_cast<const char*>(to) + residual), lanes);
    }
    return at_most(at_least(sum, low), high);
  }
};

inline bool is_empty(const Epilogue& epilogue) {
  return !epilogue.scale && !epilogue.bias && !epilogue.residual && epilogue.activation == Activation::kNone;
}

// Memory that a thread keeps from call to call: fresh pages would cost more than the arithmetic of a small layer.
class Scratch {
 public:
  // Uninitialized floats, aligned to 64 bytes, valid until the thread's next call with the same slot.
  static float* floats(int slot, int64_t count) {
    thread_local Scratch buffers[kSlots];
    Scratch& buffer = buffers[slot];
#if JAXCNN_SANITIZE
    // The memory is new at each call and has exactly `count` floats, so that a sanitizer detects any access beyond it.
    std::free(buffer.memory_);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, sizeof(float) * count)) std::abort();
    buffer.memory_ = static_cast<float*>(memory);
    return buffer.memory_;
#endif
    if (count > buffer.size_) {
      std::free(buffer.memory_);
      buffer.size_ = (count + 1023) / 1024 * 1024;
      buffer.memory_ = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * buffer.size_));
    }
    return buffer.memory_;
  }
  // Returns uninitialized elements of another type, under the same conditions.
  template <typename T>
  static T* array(int slot, int64_t count) {
    return reinterpret_cast<T*>(floats(slot, ceil_div(count * sizeof(T), sizeof(float))));
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

 private:
  static constexpr int kSlots = 8;
  float* memory_ = nullptr;
  int64_t size_ = 0;
};

// Calls `body(index)` for each index below `tasks` on a runner's threads.
template <typename Body>
void parallel(TaskRunner& runner, int64_t tasks, const Body& body) {
  runner.run(
      tasks, [](void* context, int64_t index) { (*static_cast<const Body*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
