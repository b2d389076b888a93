// Products of matrices that lie in panels, for the native programs of CPUs.
//
// A matrix lies in panels of 16 columns, row by row, as which products read it. Vectors
// have the width of the machine's registers, by what the compiler is told of it.

#ifndef LVB_OPS_PANELS_H_
#define LVB_OPS_PANELS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace lvb {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;  // Of a vector; of a tile of a product.
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 4;
#endif
constexpr int kPanel = 16;  // Columns of a panel.
constexpr int kVectors = kPanel / kLanes;
constexpr int64_t kDepth = 256;  // Of a product, so that a panel stays in the L1 cache.

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline Vec& at(float* x) { return *reinterpret_cast<Vec*>(x); }
inline const Vec& at(const float* x) { return *reinterpret_cast<const Vec*>(x); }
inline Vec all(float x) { return Vec{} + x; }
inline float sum(Vec x) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += x[lane];
  return total;
}

// A matrix in panels: element (i, j) is at data[j / 16 * stride + 16 i + j % 16].
struct Panels {
  float* data;
  int64_t stride;  // From panel to panel, 16 times the rows of the whole matrix.

  float* panel(int64_t j) const { return data + j * stride; }
  Panels rows(int64_t first) const { return {data + first * kPanel, stride}; }
};

class Floats {  // Owned, aligned, not initialised.
 public:
  explicit Floats(int64_t size)
      : data_(static_cast<float*>(operator new(4 * size, std::align_val_t(64)))) {}
  ~Floats() { operator delete(data_, std::align_val_t(64)); }
  Floats(const Floats&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

// M rows of a panel of c (+)= a b. Consecutive rows of `a` are kRowStep apart, columns
// kDepthStep, and after 16 columns `a` goes on at `block`.
template <int M, int kRowStep, int kDepthStep>
inline void tile(int64_t depth, int64_t block, const float* a, const float* b, float* c,
                 bool add) {
  Vec sum[M][kVectors];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = add ? at(c + i * kPanel + v * kLanes) : Vec{};
  for (int64_t first = 0; first < depth; first += 16, a += block) {
    const int64_t count = std::min<int64_t>(16, depth - first);
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; ++k, b += kPanel)
      for (int i = 0; i < M; ++i)
        for (int v = 0; v < kVectors; ++v)
          sum[i][v] += a[i * kRowStep + k * kDepthStep] * at(b + v * kLanes);
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kVectors; ++v) at(c + i * kPanel + v * kLanes) = sum[i][v];
}

// `tile` for 1 to kMax rows.
template <int kMax, int kRowStep, int kDepthStep, typename... Args>
inline void tile_of(int64_t rows, Args... args) {
  if (rows == kMax) {
    tile<kMax, kRowStep, kDepthStep>(args...);
  } else if constexpr (kMax > 1) {
    tile_of<kMax - 1, kRowStep, kDepthStep>(rows, args...);
  }
}

// c (+)= a b, with `rows` rows, `depth` columns of a, and `columns` of b and c, both
// multiples of 16; `done(j)` is called when panel j of c is complete.
template <typename Done>
inline void multiply(int64_t rows, int64_t depth, int64_t columns, Panels a, Panels b,
                     Panels c, bool add, Done done) {
  for (int64_t first = 0; first < depth; first += kDepth) {
    const int64_t count = std::min(kDepth, depth - first);
    for (int64_t j = 0; j < columns / kPanel; ++j) {
      for (int64_t i = 0; i < rows; i += kRows)
        tile_of<kRows, kPanel, 1>(std::min<int64_t>(kRows, rows - i), count, a.stride,
                                  a.rows(i).panel(first / kPanel),
                                  b.panel(j) + first * kPanel, c.panel(j) + i * kPanel,
                                  add || first > 0);
      if (first + count == depth) done(j);
    }
  }
}

inline void multiply(int64_t rows, int64_t depth, int64_t columns, Panels a, Panels b,
                     Panels c, bool add = false) {
  multiply(rows, depth, columns, a, b, c, add, [](int64_t) {});
}

// Panel j of c (+)= a^T b, with `width` columns of a and `depth` rows of a and b.
inline void multiply_transposed(int64_t width, int64_t depth, Panels a, Panels b,
                                Panels c, int64_t j, bool add) {
  constexpr int kPart = kLanes == 16 ? 16 : kRows;
  for (int64_t i = 0; i < width / kPanel; ++i)
    for (int64_t part = 0; part < kPanel; part += kPart)
      tile_of<kPart, 1, kPanel>(std::min<int64_t>(kPart, kPanel - part), depth,
                                int64_t{16 * kPanel}, a.panel(i) + part, b.panel(j),
                                c.panel(j) + (i * kPanel + part) * kPanel, add);
}

// Panel j of a (d, 4d) matrix to rows 16 j ... of its transpose.
inline void transpose_panel(int64_t width, const Panels& from, const Panels& to,
                            int64_t j) {
  for (int64_t i = 0; i < width / kPanel; ++i) {
    const float* x = from.panel(j) + i * kPanel * kPanel;
    float* y = to.panel(i) + j * kPanel * kPanel;
    for (int row = 0; row < kPanel; ++row)
      for (int column = 0; column < kPanel; ++column)
        y[row * kPanel + column] = x[column * kPanel + row];
  }
}

// e^x for x <= 0; a power of two times a polynomial, fitted here, error 2e-9.
inline Vec exp_negative(Vec x) {
  x = x < -87.0f ? all(-87.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: sums with it are whole numbers.
  const Vec n = (x * 1.44269504f + kRound) - kRound;
  const Vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2.
  Vec p = all(1.3836820e-3f);
  for (const float c :
       {8.3748233e-3f, 4.1668225e-2f, 1.6666420e-1f, 4.9999991e-1f, 1.0f, 1.0f})
    p = p * f + c;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

struct Gelu {
  Vec cdf, density;  // Phi and phi of the standard normal.
};

// With Mills' ratio (1 - Phi) / phi = t poly(t), t = 1 / (1 + |x| / 3.75); the
// polynomial was fitted on 0 ... 14.5, error 1.5e-8.
inline Gelu normal(Vec x) {
  const Vec size = x < 0.0f ? -x : x;
  const Vec density = exp_negative(-0.5f * x * x) * 0.398942280f;
  const Vec t = 1.0f / (1.0f + size * (1 / 3.75f));
  Vec p = all(0.0758826658f);
  for (const float c : {-0.347134113f, 0.505440950f, -0.250716776f, 0.319093943f,
                        0.161816642f, 0.256454974f, 0.265769869f, 0.266706049f})
    p = p * t + c;
  const Vec tail = density * p * t;
  return {x < 0.0f ? tail : 1.0f - tail, density};
}

// What is done with rows of d numbers, side by side.
struct Row {
  int64_t width;

  template <typename F>
  void each(F f) const {
    for (int64_t k = 0; k < width; k += kLanes) f(k);
  }
  template <typename F>
  float sum(F f) const {
    Vec parts{};
    for (int64_t k = 0; k < width; k += kLanes) parts += f(k);
    return lvb::sum(parts);
  }
  void load(float* row, Panels from, int64_t i) const {
    for (int64_t j = 0; j < width / kPanel; ++j)
      std::memcpy(row + j * kPanel, from.panel(j) + i * kPanel, 4 * kPanel);
  }
  void store(const float* row, Panels to, int64_t i) const {
    for (int64_t j = 0; j < width / kPanel; ++j)
      std::memcpy(to.panel(j) + i * kPanel, row + j * kPanel, 4 * kPanel);
  }
};

}  // namespace lvb

#endif  // LVB_OPS_PANELS_H_
