// Vectors as wide as the processor's registers, in what compilers offer on every processor.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// A block of products has kRows x kOutputs = kLanes results, as many as registers hold.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 4, kOutputs = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 4, kOutputs = 2;
#else
constexpr int kLanes = 4, kRows = 2, kOutputs = 2;
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Lanes broadcast(float x) { return Lanes{} + x; }

template <typename Vector, typename T>
inline Vector read(const T* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}
// The first numbers alone; in a vector that is read the others are zero.
template <typename Vector, typename T>
inline Vector read_some(const T* from, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(Vector) == 64 && sizeof(T) == 4)
    return (Vector)_mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), from);
  if constexpr (sizeof(Vector) == 64 && sizeof(T) == 2)
    return (Vector)_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), from);
  if constexpr (sizeof(Vector) == 32 && sizeof(T) == 2)
    return (Vector)_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), from);
#endif
  Vector found = {};
  std::memcpy(&found, from, count * sizeof *from);
  return found;
}

inline Lanes widened(const Halves& halves) {
  return same_bits<Lanes>(__builtin_convertvector(halves, Bits) << 16);
}
inline Lanes load(const float* from) { return read<Lanes>(from); }
inline Lanes load(const float* from, int64_t count) { return read_some<Lanes>(from, count); }
inline Lanes load(const BFloat16* from) { return widened(read<Halves>(from)); }
inline Lanes load(const BFloat16* from, int64_t count) {
  return widened(read_some<Halves>(from, count));
}

inline void store(const Lanes& lanes, float* to, int64_t count = kLanes) {
  std::memcpy(to, &lanes, count * sizeof *to);
}
inline void store(const Lanes& lanes, BFloat16* to, int64_t count = kLanes) {
  const Bits bits = same_bits<Bits>(lanes);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
  const Bits kept = lanes == lanes ? rounded : (bits >> 16) | 0x40;  // what is no number stays so
  const Halves halves = __builtin_convertvector(kept, Halves);
  std::memcpy(to, &halves, count * sizeof *to);
}

// Some neighbouring numbers of a row, as one instruction multiplies them with those of another.
template <typename T>
struct Strip {
  static constexpr int kWidth = kLanes;
  Lanes value;
  explicit Strip(const T* from) : value(load(from)) {}
  Strip(const T* from, int64_t count) : value(load(from, count)) {}
  Lanes times(const Strip& other, const Lanes& sum) const { return sum + value * other.value; }
};

#if defined(__AVX512BF16__)
template <>
struct Strip<BFloat16> {
  static constexpr int kWidth = 2 * kLanes;
  __m512bh value;
  explicit Strip(const BFloat16* from) : value(read<__m512bh>(from)) {}
  Strip(const BFloat16* from, int64_t count)
      : value((__m512bh)read_some<__m512i>(from, count)) {}
  Lanes times(const Strip& other, const Lanes& sum) const {
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, value, other.value);
  }
};
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SPECDEC_SHUFFLES
#endif
#endif

#if defined(SPECDEC_SHUFFLES)
// Adds the two halves of each segment of kWidth lanes: those of `a`, then those of `b`.
template <int kWidth, bool kSecond>
constexpr int lane_of(int i) {
  constexpr int own = kLanes / 2, half = kWidth / 2;
  return i / own * kLanes + i % own / half * kWidth + i % own % half + (kSecond ? half : 0);
}
template <int kWidth, int... I>
inline Lanes folded(const Lanes& a, const Lanes& b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, lane_of<kWidth, false>(I)...) +
         __builtin_shufflevector(a, b, lane_of<kWidth, true>(I)...);
}
// Lane i of the result is the sum of the lanes of vector i, if there are kLanes of them.
template <int kCount = kLanes>
inline Lanes totals(const Lanes* of) {
  if constexpr (kCount == 1) {
    return *of;
  } else {
    constexpr int half = kCount / 2, width = kLanes / half;
    return folded<width>(totals<half>(of), totals<half>(of + half),
                         std::make_integer_sequence<int, kLanes>{});
  }
}
#else
inline Lanes totals(const Lanes* of) {
  Lanes found = {};
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) found[i] += of[i][j];
  return found;
}
#endif

// e^x for x <= 0, to some units in the last place: 2^n e^r with |r| <= ln(2) / 2, and e^r as a
// polynomial (Moshier's Cephes library: expf).
inline Lanes exponential(Lanes x) {
  x = x < -87.0f ? broadcast(-87.0f) : x;
  const Lanes rounding = broadcast(12582912.0f);  // 1.5 x 2^23: the sum has no room for fractions
  const Lanes shifted = x * 1.44269504088896341f + rounding;
  const Lanes n = shifted - rounding;
  const Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln(2) in two parts
  Lanes sum = broadcast(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                     5.0000001201e-1f})
    sum = sum * r + next;
  sum = sum * r * r + r + 1.0f;
  return same_bits<Lanes>(same_bits<Bits>(sum) + (same_bits<Bits>(shifted) << 23));
}
