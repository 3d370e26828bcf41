// Drives the array: tiles on standard input, cycles and sums on standard output.
// ROWS, COLS, LANES, COLUMNS, GROUPS, BITS and DRAIN come from the command line of the compiler.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

template <size_t B> value<B> &of(value<B> &x) { return x; }
template <size_t B> value<B> &of(wire<B> &x) { return x.curr; }
template <size_t B> void set(value<B> &x, const void *bytes, size_t n) {
  std::memset(x.data, 0, sizeof x.data);
  std::memcpy(x.data, bytes, n);
}
template <size_t B> void put(value<B> &x, uint32_t number) { set(x, &number, 4 < sizeof x.data ? 4 : sizeof x.data); }
template <class T> bool on(T &x) { return of(x).data[0] & 1; }

static bool take(void *to, size_t n) { return std::fread(to, 1, n, stdin) == n; }

int main() {
  const size_t act = ROWS * LANES * BITS / 8, wgt = COLS * LANES * BITS / 8, steps = COLUMNS / LANES;
  cxxrtl_design::p_sparqle__array top;
  std::vector<uint8_t> bitmap(ROWS * COLUMNS / 8), turn((ROWS * (BITS + 1) + 7) / 8);
  std::vector<uint8_t> lsb(act * steps), msb(act * steps), weights(wgt * steps);
  bool dense = false, sparse = false;
  uint32_t step = 0, tile[6];
  struct { int32_t dense, sparse, waiting; } count;
  // One cycle; memories answer what the last one asked for.
  auto cycle = [&] {
    if (dense) {
      set(top.p_lsb, &lsb[step * act], act);
      set(top.p_weights, &weights[step * wgt], wgt);
    }
    if (sparse) set(top.p_msb, &msb[step * act], act);
    put(top.p_clk, 0);
    top.step();
    dense = on(top.p_read__dense), sparse = on(top.p_read__sparse);
    step = of(top.p_step).data[0];
    count.dense += dense, count.sparse += sparse;
    for (auto word : of(top.p_waiting).data) count.waiting += __builtin_popcount(word);
    put(top.p_clk, 1);
    top.step();
  };
  while (take(tile, sizeof tile)) {
    if (!take(bitmap.data(), bitmap.size()) || !take(turn.data(), turn.size()) ||
        !take(lsb.data(), lsb.size()) || !take(msb.data(), msb.size()) ||
        !take(weights.data(), weights.size()))
      return 2;
    put(top.p_columns, tile[0]), put(top.p_zero, tile[1]), put(top.p_slice, tile[2]);
    put(top.p_weights__signed, tile[3]), put(top.p_lsb__signed, tile[4]);
    set(top.p_bitmap, bitmap.data(), bitmap.size()), set(top.p_turn, turn.data(), turn.size());
    put(top.p_start, 1);
    cycle();
    put(top.p_start, 0);
    count = {};
    // Cycles from the acceptance to the one in which the next tile could be accepted.
    int32_t cycles = 0;
    bool ready;
    do {
      cycle();
      cycles++;
      ready = !dense && !sparse;
      put(top.p_clk, 0), top.step();
      ready = on(top.p_ready) && !on(top.p_read__dense) && !on(top.p_read__sparse);
    } while (!ready && cycles < 1 << 20);
    int32_t out[] = {cycles, count.dense, count.sparse, count.waiting};
    std::fwrite(out, sizeof out, 1, stdout);
    for (int i = 0; i < DRAIN; i++) cycle();
    for (uint32_t row = 0; tile[5] && row < ROWS; row++)
      for (uint32_t group = 0; group < GROUPS; group++) {
        put(top.p_drain__row, row), put(top.p_drain__group, group);
        put(top.p_clk, 0), top.step();
        std::fwrite(of(top.p_drain).data, 4, COLS, stdout);
      }
  }
}
