// Entry points of the native memory for `lvb/ops/memory_native.py`.
//
// Arrays are float32, row by row, and come in the order of that file.

#include <memory>
#include <vector>

#include "crew.h"
#include "memory_backward.h"
#include "memory_forward.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;

// The arrays of all images that both ways read: queries, keys, values, token weights,
// momentum and decay.
struct Signals {
  const float* data[6];

  std::vector<lvb::Chunk> image(int64_t b, const lvb::Rule& rule) const {
    const int64_t size = rule.tokens * rule.width;
    std::vector<lvb::Chunk> chunks(rule.chunks);
    for (int64_t t = 0; t < rule.chunks; ++t) {
      chunks[t].queries = data[0] + (b * rule.chunks + t) * size;
      if (!rule.writes(t)) continue;
      const int64_t place = b * (rule.chunks - 1) + t;
      chunks[t].keys = data[1] + place * size;
      chunks[t].values = data[2] + place * size;
      chunks[t].token_weights = data[3] + place * rule.tokens;
      chunks[t].momentum = data[4][place];
      chunks[t].decay = data[5][place];
    }
    return chunks;
  }
};

// Of an image's share of what is kept: the numbers in each of its seven arrays.
std::vector<int64_t> kept_sizes(const lvb::Rule& rule, bool every_chunk) {
  const int64_t states = every_chunk ? rule.chunks : 1;
  const int64_t written = every_chunk ? rule.chunks - 1 : 1;
  const int64_t keys = written * rule.tokens;
  const int64_t rows = 2 * keys + (every_chunk ? rule.tokens : 0);
  return {2 * states * rule.weights(), rows * rule.hidden(), rows * rule.width, rows,
          keys * rule.width,           keys * rule.hidden(), 3 * written};
}

lvb::Kept kept_at(const std::vector<float*>& start, bool every_chunk,
                  const lvb::Rule* rule) {
  return {start[0], start[1], start[2],    start[3], start[4],
          start[5], start[6], every_chunk, rule};
}

// Calls `walk(image, threads, parallel)` for each image: each by one thread, in rounds,
// or one after the other by all threads, of whose time a tenth goes into waiting, and
// more where there are more threads than tiles.
template <typename F>
void for_images(int64_t images, const lvb::Rule& rule, ffi::ThreadPool& pool, F walk) {
  const int64_t pieces = std::max(images, 2 * rule.tiles());
  const int64_t threads = std::max<int64_t>(1, std::min(pool.num_threads(), pieces));
  lvb::Crew crew(pool, threads);
  const int64_t rounds = (images + threads - 1) / threads;
  if (10 * rounds * std::min(threads, rule.tiles()) <= 11 * images) {
    crew.run(images, [&](int64_t b, int) { walk(b, 1, lvb::alone); });
    return;
  }
  for (int64_t b = 0; b < images; ++b)
    walk(b, threads,
         [&](int64_t count, const lvb::Work& work) { crew.run(count, work); });
}

// Data of arrays, or of results, from the `first` on.
std::vector<float*> data_of(ffi::RemainingArgs args, size_t first = 0) {
  std::vector<float*> data;
  for (size_t i = first; i < args.size(); ++i)
    data.push_back(args.get<Array>(i).value().typed_data());
  return data;
}
std::vector<float*> data_of(ffi::RemainingRets results, size_t first = 0) {
  std::vector<float*> data;
  for (size_t i = first; i < results.size(); ++i)
    data.push_back(results.get<Array>(i).value()->typed_data());
  return data;
}

Signals signals_of(const std::vector<float*>& inputs) {
  Signals signals;
  std::copy(inputs.begin(), inputs.begin() + 6, signals.data);
  return signals;
}

lvb::Rule rule_of(ffi::RemainingArgs args, float epsilon, float clip, int64_t cut) {
  const auto shape = args.get<Array>(0).value().dimensions();  // (B, T, L, d)
  return {shape[1], shape[2], shape[3], epsilon, clip, cut};
}

// Signals and M_0 to the answers and, if there are more results, what is kept.
ffi::Error there(ffi::ThreadPool pool, ffi::RemainingArgs args,
                 ffi::RemainingRets results, float epsilon, float clip) {
  const lvb::Rule rule = rule_of(args, epsilon, clip, 0);
  const std::vector<float*> inputs = data_of(args), outputs = data_of(results);
  const Signals signals = signals_of(inputs);
  const bool keeps = outputs.size() > 1;
  const std::vector<int64_t> sizes = kept_sizes(rule, keeps);
  const auto one = [&](int64_t b, int threads, const lvb::Parallel& parallel) {
    std::vector<float*> start;
    std::vector<std::unique_ptr<lvb::Floats>> own;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (!keeps) own.push_back(std::make_unique<lvb::Floats>(sizes[i]));
      start.push_back(keeps ? outputs[1 + i] + b * sizes[i] : own.back()->get());
    }
    const float* const initial[3] = {inputs[6], inputs[7], inputs[8]};
    float* answers = outputs[0] + b * rule.chunks * rule.tokens * rule.width;
    lvb::Walk walk(rule, kept_at(start, keeps, &rule), threads);
    walk.run(signals.image(b, rule), initial, answers, parallel);
  };
  for_images(args.get<Array>(0).value().dimensions()[0], rule, pool, one);
  return ffi::Error::Success();
}

// Signals, what was kept and the slope in the answers to those in signals and M_0.
ffi::Error back(ffi::ThreadPool pool, ffi::RemainingArgs args,
                ffi::RemainingRets results, float epsilon, float clip, int64_t cut) {
  const lvb::Rule rule = rule_of(args, epsilon, clip, cut);
  const std::vector<float*> inputs = data_of(args), outputs = data_of(results);
  const Signals signals = signals_of(inputs);
  const std::vector<int64_t> sizes = kept_sizes(rule, true);
  const auto one = [&](int64_t b, int threads, const lvb::Parallel& parallel) {
    std::vector<float*> start;
    for (size_t i = 0; i < sizes.size(); ++i)
      start.push_back(inputs[6 + i] + b * sizes[i]);
    const int64_t read = rule.chunks * rule.tokens * rule.width;
    const int64_t written = rule.chunks - 1, tokens = written * rule.tokens;
    const lvb::Slopes slopes{
        outputs[0] + b * read,
        outputs[1] + b * tokens * rule.width,
        outputs[2] + b * tokens * rule.width,
        outputs[3] + b * tokens,
        outputs[4] + b * written,
        outputs[5] + b * written,
        {outputs[6] + b * rule.matrix(), outputs[7] + b * rule.matrix(),
         outputs[8] + b * rule.width}};
    lvb::WalkBack walk(rule, kept_at(start, true, &rule), threads);
    walk.run(signals.image(b, rule), inputs[13] + b * read, slopes, parallel);
  };
  for_images(args.get<Array>(0).value().dimensions()[0], rule, pool, one);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(lvb_memory_there, there,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<float>("epsilon")
                                  .Attr<float>("clip"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(lvb_memory_back, back,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<float>("epsilon")
                                  .Attr<float>("clip")
                                  .Attr<int64_t>("cut"));
