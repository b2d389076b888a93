// The walk back over the memory's chunks: slopes of the outer loss, named `_bar`.
//
// Follows `lvb/ops/memory_walk.py` line by line, tile of rows by tile of rows.

#ifndef LVB_OPS_MEMORY_BACKWARD_H_
#define LVB_OPS_MEMORY_BACKWARD_H_

#include <vector>

#include "memory_forward.h"

namespace lvb {

// Slopes in the arrays of one image, row by row.
struct Slopes {
  float *queries, *keys, *values, *token_weights, *momentum, *decay;
  float* initial[3];
};

class WalkBack {
 public:
  WalkBack(const Rule& rule, const Kept& kept, int threads)
      : rule_(rule),
        kept_(kept),
        tokens_(2 * rule.tokens * rule.width),
        z_bar_(2 * rule.tokens * rule.width),
        hidden_(2 * rule.tokens * rule.hidden()),
        a_bar_(2 * rule.tokens * rule.hidden()),
        h_bar_(rule.tokens * rule.hidden()),
        turned_(4 * rule.matrix()),
        m_bar_(rule.weights()),
        v_bar_(rule.weights()),
        gradient_bar_(rule.weights()),
        gains_(2 * rule.tiles() * rule.width),
        sums_(3 * 2 * rule.groups()),
        scratch_(threads * scratch_size()) {}

  // `answers_bar` is the slope in the answers of all chunks.
  void run(const std::vector<Chunk>& chunks, const float* answers_bar,
           const Slopes& slopes, const Parallel& parallel) {
    const int64_t size = 4 * rule_.weights();
    const Weights m_bar{m_bar_.get(), &rule_};
    std::memset(m_bar_.get(), 0, size);
    std::memset(v_bar_.get(), 0, size);
    for (int64_t t = rule_.chunks - 1; t >= 0; --t) {
      const bool writes = rule_.writes(t);
      if (writes) sum_up(t, chunks[t], slopes, parallel);
      undo_descend(t, chunks[t], parallel);
      const int64_t tiles = (1 + writes) * rule_.tiles();
      parallel(tiles, [&](int64_t i, int thread) {
        const Tile tile = Tile::number(i, rule_, writes);
        Local local(scratch_.get() + thread * scratch_size(), rule_);
        local.d_gain = gains_.get() + i * rule_.width;
        if (tile.keys) {
          undo_keys(t, chunks[t], tile, slopes, local);
        } else {
          undo_queries(t, chunks[t], tile, answers_bar, slopes, local);
        }
      });
      undo_products(t, parallel);
      add_rows(gains_.get(), tiles, rule_.width, m_bar.gain());
      if (rule_.cut && t && t % rule_.cut == 0) {
        std::memset(m_bar_.get(), 0, size);
        std::memset(v_bar_.get(), 0, size);
      }
    }
    for (int which = 0; which < 2; ++which)
      unpack(m_bar.matrix(which), slopes.initial[which], rule_.width, rule_.hidden());
    std::memcpy(slopes.initial[2], m_bar.gain(), 4 * rule_.width);
  }

 private:
  // What a thread needs for a tile: of (rows, 4d), of (rows, d), and rows of d.
  struct Local {
    Local(float* data, const Rule& rule) {
      const int64_t stride = kTileRows * kPanel, d = rule.width;
      for (Panels* wide : {&slope, &curved, &slope_h, &hidden_bar}) {
        *wide = {data, stride};
        data += kTileRows * rule.hidden();
      }
      for (Panels* narrow : {&keys_bar, &p_bar, &x_bar}) {
        *narrow = {data, stride};
        data += kTileRows * d;
      }
      for (float*& row : row) {
        row = data;
        data += d;
      }
    }
    static int64_t size(const Rule& rule) {
      return kTileRows * (4 * rule.hidden() + 3 * rule.width) + 7 * rule.width;
    }

    Panels slope, curved, slope_h, hidden_bar, keys_bar, p_bar, x_bar;
    float* row[7];
    float* d_gain;
  };

  int64_t scratch_size() const { return Local::size(rule_); }
  // Of W_1, W_2 and the slopes in their gradients, turned around.
  Panels turned(int which) const {
    return {turned_.get() + which * rule_.matrix(), rule_.hidden() * kPanel};
  }
  Panels of_rows(const Floats& data, int64_t t) const {
    return {data.get(), rule_.rows(t) * kPanel};
  }
  Panels of_keys(const Floats& data) const {
    return {data.get(), rule_.tokens * kPanel};
  }

  // Adds the slope in M_t to that in V_t, and sums up what the clip, eta and alpha
  // need: of v_bar times the clipped gradient, v_bar V_{t-1} and m_bar M_{t-1}.
  void sum_up(int64_t t, const Chunk& chunk, const Slopes& slopes,
              const Parallel& parallel) {
    const float *m = kept_.weights(t).data, *v = kept_.momentum(t).data;
    const float* v_after = kept_.momentum(t + 1).data;
    float *m_bar = m_bar_.get(), *v_bar = v_bar_.get();
    const auto add = [&](int64_t first, int64_t count, float* sums) {
      Vec pull{}, eta{}, alpha{};
      for (int64_t k = first; k < first + count; k += kLanes) {
        const Vec slope = at(v_bar + k) + at(m_bar + k);
        pull += slope * (chunk.momentum * at(v + k) - at(v_after + k));
        eta += slope * at(v + k);
        alpha += at(m_bar + k) * at(m + k);
        at(v_bar + k) = slope;
      }
      sums[0] = sum(pull);
      sums[1] = sum(eta);
      sums[2] = sum(alpha);
    };
    const int64_t groups = rule_.groups(), panel = rule_.width * kPanel;
    parallel(2 * groups, [&](int64_t i, int) {
      const int64_t first = i % groups * kGroup, last = rule_.last_of(i % groups);
      add(i / groups * rule_.matrix() + first * panel, (last - first) * panel,
          sums_.get() + 3 * i);
    });
    float gain[3], eta = 0, alpha = 0;
    add(2 * rule_.matrix(), rule_.width, gain);
    for (int which = 0; which < 3; ++which) pulls_[which] = which == 2 ? gain[0] : 0;
    for (int64_t i = 0; i < 2 * groups; ++i) {
      pulls_[i / groups] += sums_.get()[3 * i];
      eta += sums_.get()[3 * i + 1];
      alpha += sums_.get()[3 * i + 2];
    }
    slopes.momentum[t] = eta + gain[1];
    slopes.decay[t] = -(alpha + gain[2]);
  }

  // Slopes in M_{t-1} and V_{t-1} through Eq. (4), and in the gradient; all that is to
  // be multiplied with is laid out.
  void undo_descend(int64_t t, const Chunk& chunk, const Parallel& parallel) {
    const bool writes = rule_.writes(t);
    const Weights m = kept_.weights(t), g_bar{gradient_bar_.get(), &rule_};
    const float* v = kept_.momentum(t).data;
    const auto undo = [&](int64_t first, int64_t count, int which) {
      const float* v_after = kept_.momentum(t + 1).data;
      float *m_bar = m_bar_.get(), *v_bar = v_bar_.get();
      float pull = 0, shrink = 1;
      if (rule_.clip) {
        const float c = rule_.clip;
        const float inverse = 1 / std::sqrt(c * c + kept_.square(t)[which]);
        pull = pulls_[which] * inverse / c;
        shrink = c * inverse;
      }
      for (int64_t k = first; k < first + count; k += kLanes) {
        const Vec clipped = chunk.momentum * at(v + k) - at(v_after + k);
        at(g_bar.data + k) = pull * clipped - shrink * at(v_bar + k);
        at(m_bar + k) *= 1 - chunk.decay;
        at(v_bar + k) *= chunk.momentum;
      }
    };
    const int64_t panel = rule_.width * kPanel, groups = rule_.groups();
    parallel(2 * groups, [&](int64_t i, int) {
      const int which = i >= groups;
      for (int64_t j = i % groups * kGroup; j < rule_.last_of(i % groups); ++j) {
        transpose_panel(rule_.width, m.matrix(which), turned(which), j);
        if (!writes) continue;
        undo(which * rule_.matrix() + j * panel, panel, which);
        transpose_panel(rule_.width, g_bar.matrix(which), turned(2 + which), j);
      }
    });
    if (writes) undo(2 * rule_.matrix(), rule_.width, 2);
  }

  // From the slope in the answers to those in the queries.
  void undo_queries(int64_t t, const Chunk& chunk, Tile tile, const float* answers_bar,
                    const Slopes& slopes, Local& local) {
    const int64_t d = rule_.width;
    const Row row{d};
    const int64_t place = t * rule_.tokens + tile.token;
    pack(chunk.queries + tile.token * d, of_rows(tokens_, t).rows(tile.first),
         tile.rows, d);
    curves(t, tile, local, false);
    std::memset(local.d_gain, 0, 4 * d);
    float *y_bar = local.row[0], *none = local.row[1];
    row.each([&](int64_t k) { at(none + k) = Vec{}; });
    for (int64_t i = 0; i < tile.rows; ++i) {
      std::memcpy(y_bar, answers_bar + (place + i) * d, 4 * d);
      row.store(y_bar, local.x_bar, i);
      undo_read(t, tile, i, y_bar, none, 0, local);
    }
    undo_hidden(t, tile, local, false);
    unpack(local.x_bar, slopes.queries + place * d, tile.rows, d);
  }

  // From the slopes in the gradient to those in keys, values and token weights.
  void undo_keys(int64_t t, const Chunk& chunk, Tile tile, const Slopes& slopes,
                 Local& local) {
    const int64_t d = rule_.width, wide = rule_.hidden(), rows = tile.rows;
    const Weights g_bar{gradient_bar_.get(), &rule_};
    const Panels x = of_rows(tokens_, t).rows(tile.first);
    const Panels hidden = of_rows(hidden_, t).rows(tile.first);
    const Panels h_bar = of_keys(h_bar_).rows(tile.first);
    const Panels p = kept_.key_rows(kept_.d_z, t, d).rows(tile.first);
    const Panels h = kept_.key_rows(kept_.d_hidden, t, wide).rows(tile.first);
    pack(chunk.keys + tile.token * d, x, rows, d);
    curves(t, tile, local, true);
    multiply(rows, d, wide, x, g_bar.hidden(), h_bar, false, [&](int64_t j) {
      float *u = h_bar.panel(j), *curved = local.curved.panel(j);
      const float *slope = local.slope.panel(j), *hs = h.panel(j);
      for (int64_t k = 0; k < rows * kPanel; k += kLanes) {
        at(curved + k) *= at(u + k) * at(hs + k);
        at(u + k) *= at(slope + k);
        at(local.slope_h.panel(j) + k) = at(slope + k) * at(hs + k);
      }
    });
    multiply(rows, d, wide, p, g_bar.output(), local.hidden_bar);
    multiply(rows, wide, d, local.slope_h, turned(2), local.keys_bar);
    multiply(rows, wide, d, h_bar, turned(1), local.p_bar);
    multiply(rows, wide, d, hidden, turned(3), local.p_bar, true);
    std::memset(local.d_gain, 0, 4 * d);
    for (int64_t i = 0; i < rows; ++i) undo_error(t, chunk, tile, i, slopes, local);
    undo_hidden(t, tile, local, true);
    const int64_t place = t * rule_.tokens + tile.token;
    unpack(local.x_bar, slopes.keys + place * d, rows, d);
  }

  // gelu(a) of a tile, and its slope and curvature.
  void curves(int64_t t, Tile tile, Local& local, bool curved) {
    const Panels a = kept_.rows(kept_.before, t, rule_.hidden()).rows(tile.first);
    const Panels hidden = of_rows(hidden_, t).rows(tile.first);
    for (int64_t j = 0; j < rule_.hidden() / kPanel; ++j)
      for (int64_t k = 0; k < tile.rows * kPanel; k += kLanes) {
        const Vec x = at(a.panel(j) + k);
        const Gelu gelu = normal(x);
        at(hidden.panel(j) + k) = x * gelu.cdf;
        at(local.slope.panel(j) + k) = gelu.cdf + x * gelu.density;
        if (curved) at(local.curved.panel(j) + k) = gelu.density * (2.0f - x * x);
      }
  }

  // Of key i, from the slope in P to those in n, r and the token.
  void undo_error(int64_t t, const Chunk& chunk, Tile tile, int64_t i,
                  const Slopes& slopes, Local& local) {
    const int64_t d = rule_.width, token = tile.token + i;
    const Row row{d};
    const auto [y_bar, n_bar, n, scaled, error, d_output, p] = local.row;
    const float *gain = kept_.weights(t).gain(), *value = chunk.values + token * d;
    const float* g_bar = Weights{gradient_bar_.get(), &rule_}.gain();
    const float r = kept_.deviations(t)[tile.first + i];
    const float step = 2.0f / d * chunk.token_weights[token];
    row.load(n, kept_.rows(kept_.normalised, t, d), tile.first + i);
    row.load(p, kept_.key_rows(kept_.d_z, t, d), tile.first + i);
    row.load(scaled, local.p_bar, i);
    const float pulled =
        row.sum([&](int64_t k) { return at(scaled + k) * at(p + k); }) * r / d;
    row.each([&](int64_t k) {
      const Vec y = at(chunk.keys + token * d + k) + (1 + at(gain + k)) * at(n + k);
      at(error + k) = y - at(value + k);
      at(d_output + k) = step * at(error + k);
      at(scaled + k) *= r;
    });
    const auto d_n = [&](int64_t k) { return (1 + at(gain + k)) * at(d_output + k); };
    const float mean = row.sum([&](int64_t k) { return at(scaled + k); }) / d;
    const float overlap =
        row.sum([&](int64_t k) { return at(n + k) * at(scaled + k); }) / d;
    const float recalled = row.sum([&](int64_t k) { return at(n + k) * d_n(k); }) / d;
    float* values_bar = slopes.values + (t * rule_.tokens + token) * d;
    const float errors = row.sum([&](int64_t k) {
      const Vec d_n_bar = at(scaled + k) - mean - at(n + k) * overlap;
      const Vec d_output_bar = (1 + at(gain + k)) * d_n_bar + at(g_bar + k) * at(n + k);
      at(n_bar + k) = at(g_bar + k) * at(d_output + k) - at(scaled + k) * recalled -
                      d_n(k) * overlap;
      at(local.d_gain + k) += at(d_output + k) * d_n_bar;
      at(y_bar + k) = step * d_output_bar;
      at(values_bar + k) = -at(y_bar + k);
      return d_output_bar * at(error + k);
    });
    slopes.token_weights[t * rule_.tokens + token] = 2.0f / d * errors;
    row.load(scaled, local.keys_bar, i);
    row.each([&](int64_t k) { at(scaled + k) += at(y_bar + k); });
    row.store(scaled, local.x_bar, i);
    undo_read(t, tile, i, y_bar, n_bar, pulled, local);
  }

  // Of row i, from the slopes in y, n and r to that in z; `pulled` is that in r times
  // r^2 / d.
  void undo_read(int64_t t, Tile tile, int64_t i, const float* y_bar, float* n_bar,
                 float pulled, Local& local) {
    const Row row{rule_.width};
    const int64_t d = rule_.width;
    const float* gain = kept_.weights(t).gain();
    const float r = kept_.deviations(t)[tile.first + i];
    float *n = local.row[2], *z_bar = local.row[3];
    row.load(n, kept_.rows(kept_.normalised, t, d), tile.first + i);
    row.each([&](int64_t k) {
      at(z_bar + k) = at(n_bar + k) + (1 + at(gain + k)) * at(y_bar + k);
      at(local.d_gain + k) += at(y_bar + k) * at(n + k);
    });
    const float mean = row.sum([&](int64_t k) { return at(z_bar + k); }) / d;
    const float overlap =
        row.sum([&](int64_t k) { return at(n + k) * at(z_bar + k); }) / d;
    row.each([&](int64_t k) {
      at(z_bar + k) =
          r * (at(z_bar + k) - mean - at(n + k) * overlap) - at(n + k) * pulled;
    });
    row.store(z_bar, of_rows(z_bar_, t), tile.first + i);
  }

  // From the slope in z to those in a and x; that in x is added to `local.x_bar`.
  void undo_hidden(int64_t t, Tile tile, Local& local, bool keys) {
    const int64_t d = rule_.width, wide = rule_.hidden();
    const Panels z_bar = of_rows(z_bar_, t).rows(tile.first);
    const Panels a_bar = of_rows(a_bar_, t).rows(tile.first);
    multiply(tile.rows, d, wide, z_bar, kept_.weights(t).output(), local.hidden_bar,
             keys, [&](int64_t j) {
               const float* hidden_bar = local.hidden_bar.panel(j);
               const float* slope = local.slope.panel(j);
               for (int64_t k = 0; k < tile.rows * kPanel; k += kLanes) {
                 Vec slopes = at(hidden_bar + k) * at(slope + k);
                 if (keys) slopes += at(local.curved.panel(j) + k);
                 at(a_bar.panel(j) + k) = slopes;
               }
             });
    multiply(tile.rows, wide, d, a_bar, turned(0), local.x_bar, true);
  }

  // Adds the slopes in W_1 and W_2 at which the chunk was read and its gradient taken.
  void undo_products(int64_t t, const Parallel& parallel) {
    const int64_t d = rule_.width, groups = rule_.groups(), rows = rule_.rows(t);
    const Weights m_bar{m_bar_.get(), &rule_};
    parallel(2 * groups, [&](int64_t i, int) {
      for (int64_t j = i % groups * kGroup; j < rule_.last_of(i % groups); ++j) {
        if (i < groups) {
          multiply_transposed(d, rows, of_rows(tokens_, t), of_rows(a_bar_, t),
                              m_bar.hidden(), j, true);
          continue;
        }
        multiply_transposed(d, rows, of_rows(z_bar_, t), of_rows(hidden_, t),
                            m_bar.output(), j, true);
        if (rule_.writes(t))
          multiply_transposed(d, rule_.tokens, kept_.key_rows(kept_.d_z, t, d),
                              of_keys(h_bar_), m_bar.output(), j, true);
      }
    });
  }

  const Rule rule_;
  const Kept kept_;
  // x, its slope in z, gelu(a), slopes in a and in H; see `turned`; slopes in M_t, in
  // V_t and in the gradient.
  const Floats tokens_, z_bar_, hidden_, a_bar_, h_bar_, turned_, m_bar_, v_bar_,
      gradient_bar_;
  const Floats gains_, sums_;  // Of dgamma by tiles; see `sum_up`, by groups.
  const Floats scratch_;
  float pulls_[3];  // Sums of v_bar times the clipped gradient, by tensor.
};

}  // namespace lvb

#endif  // LVB_OPS_MEMORY_BACKWARD_H_
