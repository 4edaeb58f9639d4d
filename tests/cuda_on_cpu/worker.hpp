// The program around one .cu file. It reads launches from standard input, runs them, and writes the
// arrays to standard output. machine.py writes the requests and the list of kernels.
//
// A request is a Header, `buffers` times a Buffer, `arguments` times an Argument, and the bytes of
// all buffers. The answer is the bytes of all buffers. An error ends the process, with the reason
// on standard error.
#pragma once
#include "shim.hpp"

#include <functional>
#include <numeric>
#include <tuple>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
// AddressSanitizer does not know the stacks of the fibers, so it must not use fake stacks.
extern "C" const char* __asan_default_options() {
  return "detect_stack_use_after_return=0:detect_leaks=0:abort_on_error=0:color=never";
}
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace worker {

struct Header {
  uint32_t kernel, grid[3], block[3], shared, buffers, arguments, order, seed;
};
struct Buffer {
  uint64_t size, offset;  // offset: address of the first byte modulo 16
};
struct Argument {
  uint64_t kind, value, offset;  // kind 'p': buffer and offset; '0': null; 'i': int; 'f': float
};
enum Order : uint32_t { ascending, descending, random };

struct Values {
  std::vector<Argument> arguments;
  std::vector<unsigned char*> memory;
};

template <typename T>
T converted(const Values& values, size_t i) {
  const Argument& a = values.arguments[i];
  if constexpr (std::is_pointer_v<T>) {
    if (a.kind == '0') return nullptr;
    if (a.kind != 'p') shim::fail("argument %zu is no array, and the kernel takes a pointer", i);
    return reinterpret_cast<T>(values.memory[a.value] + a.offset);
  } else if constexpr (std::is_same_v<T, float>) {
    if (a.kind != 'f') shim::fail("argument %zu is no float, and the kernel takes one", i);
    return shim::from_word<float>(a.value);
  } else {
    static_assert(std::is_same_v<T, long long>, "kernels take pointers, Int and float");
    if (a.kind != 'i') shim::fail("argument %zu is no int, and the kernel takes Int", i);
    return static_cast<long long>(a.value);
  }
}

using Runner = std::function<void()>;

template <typename... T, size_t... i>
Runner bound_with(void (*kernel)(T...), const Values& values, std::index_sequence<i...>) {
  if (values.arguments.size() != sizeof...(T)) {
    shim::fail("%zu arguments, and the kernel takes %zu", values.arguments.size(), sizeof...(T));
  }
  auto arguments = std::make_tuple(converted<T>(values, i)...);
  return [=] { std::apply(kernel, arguments); };
}

template <typename... T>
Runner bound(void (*kernel)(T...), const Values& values) {
  return bound_with(kernel, values, std::index_sequence_for<T...>{});
}

inline Runner runner;

// A cheap random order. A new one is drawn whenever all threads wait.
struct Generator {
  uint64_t state;
  template <typename T>
  SHIM_FAST void shuffle(std::vector<T>& turn) {
    for (size_t n = turn.size(); n > 1; --n) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(turn[n - 1], turn[(state >> 33) % n]);
    }
  }
};

// The addresses of static shared memory. They are fixed, because the program is linked without PIE.
struct Variable {
  unsigned char* address;
  size_t size;
};
inline std::vector<Variable> shared_variables;

// Not memset, because AddressSanitizer checks memset and refuses its own padding of a variable.
__attribute__((no_sanitize("address"))) inline void poison(
    const Variable& variable, unsigned char value) {
  for (size_t i = 0; i < variable.size; ++i) {
    const_cast<volatile unsigned char&>(variable.address[i]) = value;
  }
}

SHIM_FAST inline void run_block(uint32_t order, Generator& generator, size_t shared) {
  // Each order has another value, so that memory without a write differs between orders.
  const unsigned char noise = order == ascending ? 0xff : order == descending ? 0xa5 : 0x3c;
  for (const Variable& variable : shared_variables) poison(variable, noise);
  std::memset(shim::dynamic_shared, noise, shared);
  std::fill_n(shim::waiting_lanes, shim::MOST_THREADS / shim::LANES, 0u);
  std::vector<int> turn(shim::threads);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == descending) std::reverse(turn.begin(), turn.end());
  for (int i = 0; i < shim::threads; ++i) {
    shim::Fiber& fiber = shim::fibers[i];
    if (!fiber.started) shim::start(fiber);
    fiber.state = shim::State::ready;
    const unsigned n = static_cast<unsigned>(i);
    fiber.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
  }
  for (;;) {
    if (order == random) generator.shuffle(turn);
    bool moved = false, all_done = true;
    for (int i : turn) {
      if (shim::fibers[i].state == shim::State::ready) {
        moved = true;
        shim::current = i;
        threadIdx = shim::fibers[i].index;
        shim::switch_to(shim::scheduler, shim::fibers[i]);
      }
      all_done = all_done && shim::fibers[i].state == shim::State::done;
    }
    if (all_done) return;
    if (moved || shim::release_block()) continue;
    for (int i = 0; i < shim::threads; ++i) {
      const shim::Fiber& f = shim::fibers[i];
      if (f.state == shim::State::done) continue;
      threadIdx = f.index;
      if (f.state == shim::State::at_block_barrier) continue;  // it waits for one of the other threads
      shim::fail("deadlock at line %d: lanes %08x are asked for, and %08x wait at warp barriers",
                 f.line, f.mask, shim::waiting_lanes[i / shim::LANES]);
    }
  }
}

inline void run_grid(const Header& h) {
  gridDim = {h.grid[0], h.grid[1], h.grid[2]};
  blockDim = {h.block[0], h.block[1], h.block[2]};
  shim::threads = static_cast<int>(h.block[0] * h.block[1] * h.block[2]);
  const uint64_t blocks = uint64_t{h.grid[0]} * h.grid[1] * h.grid[2];
  Generator generator{h.seed};
  std::vector<uint64_t> turn(blocks);
  std::iota(turn.begin(), turn.end(), uint64_t{0});
  if (h.order == descending) std::reverse(turn.begin(), turn.end());
  if (h.order == random) generator.shuffle(turn);
  for (uint64_t b : turn) {
    blockIdx = {static_cast<unsigned>(b % h.grid[0]), static_cast<unsigned>(b / h.grid[0] % h.grid[1]),
                static_cast<unsigned>(b / h.grid[0] / h.grid[1])};
    run_block(h.order, generator, h.shared);
  }
}

inline bool read_all(void* to, size_t size) {
  return size == 0 || std::fread(to, 1, size, stdin) == size;
}

// The arguments of the program are the address and the size of each shared variable, in
// hexadecimal.
template <typename Bind>
int serve(int count, char** words, Bind bind_kernel) {
  for (int i = 1; i + 1 < count; i += 2) {
    auto* address = reinterpret_cast<unsigned char*>(std::strtoull(words[i], nullptr, 16));
    shared_variables.push_back({address, std::strtoull(words[i + 1], nullptr, 16)});
  }
  Header h;
  while (read_all(&h, sizeof h)) {
    std::vector<Buffer> buffers(h.buffers);
    Values values;
    values.arguments.resize(h.arguments);
    if (!read_all(buffers.data(), buffers.size() * sizeof(Buffer)) ||
        !read_all(values.arguments.data(), h.arguments * sizeof(Argument))) {
      return 1;
    }
    std::vector<unsigned char*> allocated;
    for (const Buffer& b : buffers) {
      auto* base = static_cast<unsigned char*>(std::malloc(b.offset + b.size));
      ASAN_POISON_MEMORY_REGION(base, b.offset);
      allocated.push_back(base);
      values.memory.push_back(base + b.offset);
      if (!read_all(base + b.offset, b.size)) return 1;
    }
    shim::dynamic_shared = static_cast<unsigned char*>(std::malloc(h.shared));
    runner = bind_kernel(h.kernel, values);
    shim::body = [] { runner(); };
    run_grid(h);
    std::free(shim::dynamic_shared);
    for (size_t i = 0; i < buffers.size(); ++i) {
      std::fwrite(values.memory[i], 1, buffers[i].size, stdout);
      std::free(allocated[i]);
    }
    std::fputc('.', stdout);  // so that there is an answer if all buffers are empty
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace worker
