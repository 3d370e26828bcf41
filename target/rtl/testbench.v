// Runs tiles of a real layer through the array, one after the other, and compares the cycles of
// each and the sums in the end with what they have to be. Says PASS or FAIL.
`timescale 1ns/1ps
module testbench;
  // SIZES
  reg clk = 0, rst = 1;
  always #0.5 clk = ~clk;

  reg [15:0] columns_of [0:TILES-1];
  reg [7:0] control_of [0:TILES-1];
  reg [ROWS*COLUMNS-1:0] bitmap_of [0:TILES-1];
  reg [ROWS*(BITS+1)-1:0] turn_of [0:TILES-1];
  reg [ROWS*LANES*BITS-1:0] lsb_of [0:TILES*STEPS-1];
  reg [ROWS*LANES*BITS-1:0] msb_of [0:TILES*STEPS-1];
  reg [COLS*LANES*BITS-1:0] weights_of [0:TILES*STEPS-1];
  reg [31:0] cycles_of [0:TILES-1];
  reg [COLS*32-1:0] sums_of [0:ROWS-1];
  initial begin
    $readmemh("columns.hex", columns_of);
    $readmemh("control.hex", control_of);
    $readmemh("bitmap.hex", bitmap_of);
    $readmemh("turn.hex", turn_of);
    $readmemh("lsb.hex", lsb_of);
    $readmemh("msb.hex", msb_of);
    $readmemh("weights.hex", weights_of);
    $readmemh("cycles.hex", cycles_of);
    $readmemh("sums.hex", sums_of);
    repeat (3) @(posedge clk);
    #0.1 rst = 0;
  end

  integer next = 0, current = 0, cycle = 0, accepted = 0, errors = 0, row = 0;
  reg running = 0;
  wire ready, read_dense, read_sparse;
  wire [STEP_BITS-1:0] step;
  wire [ROWS-1:0] waiting;
  wire [COLS*32-1:0] drain;
  reg [ROWS*LANES*BITS-1:0] lsb, msb;
  reg [COLS*LANES*BITS-1:0] weights;
  reg [ROW_BITS-1:0] drain_row = 0;
  wire start = !rst && next < TILES;
  wire [15:0] columns = columns_of[next];
  wire [7:0] control = control_of[next];

  sparqle_array array (
    .clk(clk), .rst(rst), .start(start), .ready(ready),
    .bitmap(bitmap_of[next]), .columns(columns[COLUMN_BITS-1:0]), .turn(turn_of[next]),
    .zero(control[0]), .weights_signed(control[1]), .lsb_signed(control[2]),
    .slice(control[3 +: SLICE_BITS]),
    .read_dense(read_dense), .read_sparse(read_sparse), .step(step),
    .lsb(lsb), .msb(msb), .weights(weights), .waiting(waiting),
    .drain_row(drain_row), .drain_group({GROUP_BITS{1'b0}}), .drain(drain));

  // Memories answer in the cycle after they were asked.
  always @(posedge clk) begin
    if (read_dense) begin
      lsb <= lsb_of[current*STEPS + step];
      weights <= weights_of[current*STEPS + step];
    end
    if (read_sparse) msb <= msb_of[current*STEPS + step];
  end

  always @(posedge clk) if (!rst) begin
    cycle <= cycle + 1;
    if (ready && running) begin
      if (cycle - accepted != cycles_of[current]) begin
        errors = errors + 1;
        $display("tile %0d took %0d cycles, not %0d", current, cycle - accepted,
                 cycles_of[current]);
      end
      running <= 0;
    end
    if (start && ready) begin
      current <= next;
      next <= next + 1;
      accepted <= cycle;
      running <= 1;
    end
  end

  initial begin
    if ($test$plusargs("vcd")) begin
      $dumpfile("array.vcd");
      $dumpvars(1, testbench);
    end
    wait (next == TILES);
    @(posedge clk);
    wait (!running);
    repeat (DRAIN) @(posedge clk);
    for (row = 0; row < ROWS; row = row + 1) begin
      #0.1 drain_row = row;
      #0.1 if (drain !== sums_of[row]) begin
        errors = errors + 1;
        $display("row %0d: sums differ", row);
      end
    end
    if (errors == 0) $display("PASS: %0d tiles", TILES);
    else $display("FAIL: %0d errors", errors);
    $finish;
  end
endmodule
