// The memory walked over its chunks, as a native program for CPUs.
//
// Computes what `lvb/ops/memory_walk.py` computes, in float32, and follows its names:
//
//     a = x W_1    z = gelu(a) W_2    n = r (z - mean z)    y = x + (1 + gamma) n
//     D = 2 theta (y_k - v) / d       E = (1 + gamma) D
//     P = r (E - mean E - n mean(n E))       H = P W_2^T      U = gelu'(a_k) H
//     dW_1 = k^T U      dW_2 = gelu(a_k)^T P      dgamma = sum_i D n
//
// All but the last line is done row by row, so a tile of rows passes through the whole
// chain while it is in the cache, and threads share out the tiles; the last line is
// shared out by columns. What is added to what does not depend on the number of
// threads: results have the same bits.
//
// Dimensions: T chunks read, all but the last written, L tokens of a chunk, d width.
// Rows of a chunk are its keys and, after them, its queries.

#ifndef LVB_OPS_MEMORY_FORWARD_H_
#define LVB_OPS_MEMORY_FORWARD_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "crew.h"
#include "panels.h"

namespace lvb {

constexpr int64_t kTileRows = 24;  // That pass through the chain together.
constexpr int64_t kGroup = 4;      // Panels of weights that are one piece of work.

struct Rule {
  int64_t chunks, tokens, width;  // T, L, d.
  float epsilon, clip;
  int64_t cut;  // Gradients are cut before chunks cut, 2 cut, ...; 0 never.

  int64_t hidden() const { return 4 * width; }
  int64_t matrix() const { return width * hidden(); }
  int64_t weights() const { return 2 * matrix() + width; }
  int64_t groups() const { return (hidden() / kPanel + kGroup - 1) / kGroup; }
  int64_t last_of(int64_t group) const {
    return std::min((group + 1) * kGroup, hidden() / kPanel);
  }
  int64_t tiles() const { return (tokens + kTileRows - 1) / kTileRows; }
  bool writes(int64_t t) const { return t + 1 < chunks; }
  int64_t rows(int64_t t) const { return writes(t) ? 2 * tokens : tokens; }
};

// W_1, W_2 turned around, and gamma, or anything of their shape; panels of (d, 4d).
struct Weights {
  float* data;
  const Rule* rule;

  Panels matrix(int which) const {
    return {data + which * rule->matrix(), rule->width * kPanel};
  }
  Panels hidden() const { return matrix(0); }
  Panels output() const { return matrix(1); }
  float* gain() const { return data + 2 * rule->matrix(); }
};

// What the walk back needs, of one image; without it, of one chunk alone.
struct Kept {
  float *states, *before, *normalised, *deviation, *d_z, *d_hidden, *squares;
  bool every_chunk;
  const Rule* rule;

  int64_t index(int64_t t) const { return every_chunk ? t : 0; }
  Weights weights(int64_t t) const {
    return {states + index(t) * 2 * rule->weights(), rule};
  }
  Weights momentum(int64_t t) const {
    return {weights(t).data + rule->weights(), rule};
  }
  Panels rows(float* data, int64_t t, int64_t columns) const {
    return {data + index(t) * 2 * rule->tokens * columns, rule->rows(t) * kPanel};
  }
  Panels key_rows(float* data, int64_t t, int64_t columns) const {
    return {data + index(t) * rule->tokens * columns, rule->tokens * kPanel};
  }
  float* deviations(int64_t t) const { return deviation + index(t) * 2 * rule->tokens; }
  float* square(int64_t t) const { return squares + index(t) * 3; }
};

// A chunk's arrays of one image, row by row.
struct Chunk {
  const float *queries, *keys, *values, *token_weights;
  float momentum, decay;
};

// Some rows of a chunk, all keys or all queries.
struct Tile {
  int64_t first, rows, token;  // First row; first token among keys or queries.
  bool keys;

  static Tile number(int64_t i, const Rule& rule, bool writes) {
    const bool keys = writes && i < rule.tiles();
    const int64_t token = (keys || !writes ? i : i - rule.tiles()) * kTileRows;
    return {token + (keys || !writes ? 0 : rule.tokens),
            std::min(kTileRows, rule.tokens - token), token, keys};
  }
};

// Lays rows out in panels, and back.
inline void pack(const float* from, Panels to, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width / kPanel; ++j)
      std::memcpy(to.panel(j) + i * kPanel, from + i * width + j * kPanel, 4 * kPanel);
}

inline void unpack(Panels from, float* to, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width / kPanel; ++j)
      std::memcpy(to + i * width + j * kPanel, from.panel(j) + i * kPanel, 4 * kPanel);
}

// Adds up rows of `parts`, in order.
inline void add_rows(const float* parts, int64_t rows, int64_t width, float* sum) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < width; ++k) sum[k] += parts[i * width + k];
}

class Walk {
 public:
  Walk(const Rule& rule, const Kept& kept, int threads)
      : rule_(rule),
        kept_(kept),
        tokens_(2 * rule.tokens * rule.width),
        hidden_(2 * rule.tokens * rule.hidden()),
        d_before_(rule.tokens * rule.hidden()),
        output_turned_(rule.matrix()),
        gradient_(rule.weights()),
        gains_(rule.tiles() * rule.width),
        squares_(2 * rule.groups()),
        scratch_(threads * scratch_size()) {}

  // Reads and writes all chunks; `initial` lies row by row.
  void run(const std::vector<Chunk>& chunks, const float* const initial[3], float* y,
           const Parallel& parallel) {
    const Weights start = kept_.weights(0);
    for (int which = 0; which < 2; ++which)
      pack(initial[which], start.matrix(which), rule_.width, rule_.hidden());
    std::memcpy(start.gain(), initial[2], 4 * rule_.width);
    std::memset(kept_.momentum(0).data, 0, 4 * rule_.weights());
    for (int64_t j = 0; j < rule_.hidden() / kPanel; ++j)
      transpose_panel(rule_.width, start.output(), output_turned(), j);
    for (int64_t t = 0; t < rule_.chunks; ++t) {
      float* answers = y + t * rule_.tokens * rule_.width;
      const bool writes = rule_.writes(t);
      parallel((1 + writes) * rule_.tiles(), [&](int64_t i, int thread) {
        react(t, chunks[t], Tile::number(i, rule_, writes), i, answers, thread);
      });
      if (writes) write(t, chunks[t], parallel);
    }
  }

 private:
  int64_t scratch_size() const {
    return kTileRows * (rule_.hidden() + rule_.width) + 4 * rule_.width;
  }
  Panels output_turned() const {
    return {output_turned_.get(), rule_.hidden() * kPanel};
  }

  // Answers the queries, or takes the keys to what the gradient is a product of.
  void react(int64_t t, const Chunk& chunk, Tile tile, int64_t number, float* answers,
             int thread) {
    const int64_t d = rule_.width, rows = tile.rows;
    const Weights weights = kept_.weights(t);
    const int64_t stride = rule_.rows(t) * kPanel;
    const Panels x = Panels{tokens_.get(), stride}.rows(tile.first);
    const Panels a = kept_.rows(kept_.before, t, rule_.hidden()).rows(tile.first);
    const Panels hidden = Panels{hidden_.get(), stride}.rows(tile.first);
    const Panels n = kept_.rows(kept_.normalised, t, d).rows(tile.first);
    float* scratch = scratch_.get() + thread * scratch_size();
    const Panels slope{scratch, kTileRows * kPanel};
    const Panels z{scratch + kTileRows * rule_.hidden(), kTileRows * kPanel};
    pack((tile.keys ? chunk.keys : chunk.queries) + tile.token * d, x, rows, d);
    multiply(rows, d, rule_.hidden(), x, weights.hidden(), a, false, [&](int64_t j) {
      const float* from = a.panel(j);
      float *value = hidden.panel(j), *slopes = slope.panel(j);
      for (int64_t k = 0; k < rows * kPanel; k += kLanes) {
        const Vec input = at(from + k);
        const Gelu gelu = normal(input);
        at(value + k) = input * gelu.cdf;
        if (tile.keys) at(slopes + k) = gelu.cdf + input * gelu.density;
      }
    });
    multiply(rows, rule_.hidden(), d, hidden, output_turned(), z);
    const Panels d_z = kept_.key_rows(kept_.d_z, t, d).rows(tile.first);
    if (tile.keys) std::memset(gains_.get() + number * d, 0, 4 * d);
    float* row = scratch + kTileRows * (rule_.hidden() + d);
    for (int64_t i = 0; i < rows; ++i)
      normalise(t, chunk, tile, i, x, z, n, d_z, gains_.get() + number * d, answers,
                row);
    if (!tile.keys) return;
    const Panels d_hidden =
        kept_.key_rows(kept_.d_hidden, t, rule_.hidden()).rows(tile.first);
    const Panels d_before =
        Panels{d_before_.get(), rule_.tokens * kPanel}.rows(tile.first);
    multiply(rows, d, rule_.hidden(), d_z, weights.output(), d_hidden, false,
             [&](int64_t j) {
               for (int64_t k = 0; k < rows * kPanel; k += kLanes)
                 at(d_before.panel(j) + k) =
                     at(slope.panel(j) + k) * at(d_hidden.panel(j) + k);
             });
  }

  // From z of row i to n and r, and to the answer of a query or P of a key.
  void normalise(int64_t t, const Chunk& chunk, Tile tile, int64_t i, Panels x,
                 Panels z, Panels n, Panels d_z, float* d_gain, float* answers,
                 float* scratch) {
    const int64_t d = rule_.width;
    const Row row{d};
    const float* gain = kept_.weights(t).gain();
    float *zs = scratch, *xs = scratch + d, *e = scratch + 2 * d;
    row.load(zs, z, i);
    row.load(xs, x, i);
    const float mean = row.sum([&](int64_t k) { return at(zs + k); }) / d;
    row.each([&](int64_t k) { at(zs + k) -= mean; });
    const float variance =
        row.sum([&](int64_t k) { return at(zs + k) * at(zs + k); }) / d;
    const float r = 1 / std::sqrt(variance + rule_.epsilon);
    row.each([&](int64_t k) { at(zs + k) *= r; });
    row.store(zs, n, i);
    kept_.deviations(t)[tile.first + i] = r;
    if (!tile.keys) {
      float* y = answers + (tile.token + i) * d;
      row.each(
          [&](int64_t k) { at(y + k) = at(xs + k) + (1 + at(gain + k)) * at(zs + k); });
      return;
    }
    const int64_t token = tile.token + i;
    const float* v = chunk.values + token * d;
    const float step = 2.0f / d * chunk.token_weights[token];
    row.each([&](int64_t k) {
      const Vec y = at(xs + k) + (1 + at(gain + k)) * at(zs + k);
      const Vec d_output = step * (y - at(v + k));
      at(d_gain + k) += d_output * at(zs + k);
      at(e + k) = (1 + at(gain + k)) * d_output;
    });
    const float e_mean = row.sum([&](int64_t k) { return at(e + k); }) / d;
    const float overlap =
        row.sum([&](int64_t k) { return at(e + k) * at(zs + k); }) / d;
    row.each([&](int64_t k) {
      at(e + k) = r * (at(e + k) - e_mean - at(zs + k) * overlap);
    });
    row.store(e, d_z, i);
  }

  // The gradient, its clip and the step along it.
  void write(int64_t t, const Chunk& chunk, const Parallel& parallel) {
    const int64_t d = rule_.width, groups = rule_.groups();
    const Weights gradient{gradient_.get(), &rule_};
    const Panels x{tokens_.get(), rule_.rows(t) * kPanel};
    const Panels hidden{hidden_.get(), rule_.rows(t) * kPanel};
    const Panels d_before{d_before_.get(), rule_.tokens * kPanel};
    const Panels d_z = kept_.key_rows(kept_.d_z, t, d);
    parallel(2 * groups, [&](int64_t i, int) {
      const int which = i >= groups;
      Vec squares{};
      for (int64_t j = i % groups * kGroup; j < rule_.last_of(i % groups); ++j) {
        const Panels to = gradient.matrix(which);
        multiply_transposed(d, rule_.tokens, which ? d_z : x, which ? hidden : d_before,
                            to, j, false);
        for (int64_t k = 0; k < d * kPanel; k += kLanes)
          squares += at(to.panel(j) + k) * at(to.panel(j) + k);
      }
      squares_.get()[i] = sum(squares);
    });
    std::memset(gradient.gain(), 0, 4 * d);
    add_rows(gains_.get(), rule_.tiles(), d, gradient.gain());
    float* square = kept_.square(t);
    for (int which = 0; which < 2; ++which) {
      square[which] = 0;
      for (int64_t i = 0; i < groups; ++i)
        square[which] += squares_.get()[which * groups + i];
    }
    square[2] = Row{d}.sum(
        [&](int64_t k) { return at(gradient.gain() + k) * at(gradient.gain() + k); });
    descend(t, chunk, gradient, square, parallel);
  }

  void descend(int64_t t, const Chunk& chunk, Weights gradient, const float* square,
               const Parallel& parallel) {
    const Weights m = kept_.weights(t), v = kept_.momentum(t);
    const Weights m_after = kept_.weights(t + 1), v_after = kept_.momentum(t + 1);
    const auto step = [&](int64_t first, int64_t count, float shrink) {
      for (int64_t k = first; k < first + count; k += kLanes) {
        const Vec next =
            chunk.momentum * at(v.data + k) - shrink * at(gradient.data + k);
        at(m_after.data + k) = (1 - chunk.decay) * at(m.data + k) + next;
        at(v_after.data + k) = next;
      }
    };
    float shrink[3];
    for (int which = 0; which < 3; ++which)
      shrink[which] =
          rule_.clip ? rule_.clip / std::sqrt(rule_.clip * rule_.clip + square[which])
                     : 1;
    const int64_t groups = rule_.groups(), panel = rule_.width * kPanel;
    parallel(2 * groups, [&](int64_t i, int) {
      const int which = i >= groups;
      for (int64_t j = i % groups * kGroup; j < rule_.last_of(i % groups); ++j) {
        step(which * rule_.matrix() + j * panel, panel, shrink[which]);
        if (which) transpose_panel(rule_.width, m_after.output(), output_turned(), j);
      }
    });
    step(2 * rule_.matrix(), rule_.width, shrink[2]);
  }

  const Rule rule_;
  const Kept kept_;
  // x, gelu(a), U, W_2, the gradient; dgamma by tiles, |g|^2 by groups.
  const Floats tokens_, hidden_, d_before_, output_turned_, gradient_, gains_, squares_;
  const Floats scratch_;
};

}  // namespace lvb

#endif  // LVB_OPS_MEMORY_FORWARD_H_
