// Shared types: opcodes, and what travels between the units.
package systole_pkg;
  localparam int LOAD = 0, ARRAY = 1, POST = 2, STORE = 3;

  localparam logic [5:0] OP_FENCE = 0, OP_LOAD_PITCH = 1, OP_LOAD = 2, OP_STORE_PITCH = 3,
      OP_STORE = 4, OP_INPUT = 5, OP_KERNEL = 6, OP_MATMUL = 7, OP_SOURCE = 8, OP_WINDOW = 9,
      OP_DESTINATION = 10, OP_RESIDUAL = 11, OP_SLOPE = 12, OP_REQUANTIZE = 13, OP_POOL = 14;

  // A queued instruction: its bits and its place in the program (for the trace).
  typedef struct packed {
    logic [31:0] index;
    logic [127:0] bits;
  } entry_t;

  // What a unit says in the last cycle of an instruction.
  typedef struct packed {
    logic valid;
    logic [3:0] signal;
    logic [31:0] index;
  } finish_t;

  // A DMA burst.
  typedef struct packed {
    logic [1:0] memory;
    logic [31:0] dram_address;
    logic [23:0] chip_address;
    logic [16:0] n_bytes;
    logic is_last;  // of its instruction
    logic [3:0] signal;
    logic [31:0] index;
  } burst_t;

  // Machine settings, constant during a run. Sizes of memories only limit programs, which the
  // compiler has checked, so the hardware does not know them.
  typedef struct packed {
    logic [8:0] rows;
    logic [8:0] cols;
    logic shadow;
    logic [5:0] acc_bits;
    logic saturate;
    logic [1:0] rounding;  // 0 half up, 1 half away from zero, 2 half even, 3 floor
    logic [10:0] lanes;
    logic [12:0] queue_depth;
    logic [15:0] max_tokens;
    logic [16:0] dram_latency;
    logic [10:0] bytes_per_cycle;
    logic [16:0] burst_bytes;
    logic [12:0] max_outstanding;
  } config_t;

  // An accumulator's result with what was seen of it.
  typedef struct packed {
    logic signed [31:0] acc;
    logic [31:0] n_overflowed;
    logic [31:0] first_k;
    logic signed [63:0] min_sum;
    logic signed [63:0] max_sum;
  } result_t;

  // The activation side of a pass, on its way down the rows.
  typedef struct packed {
    logic valid, wide, is_signed, high;
    logic [13:0] oy, ox, output_width;
    logic signed [18:0] ty, tx;  // tap times dilation, minus padding
    logic [7:0] stride_y, stride_x;
    logic [17:0] channel;
    logic [23:0] address;
    logic [13:0] width, height;
    logic [15:0] pixel_bytes;
  } row_control_t;

  // The weight side of a pass, on its way along the columns.
  typedef struct packed {
    logic valid, first_pass, last_pass, is_signed, init, fold_last;
    logic [19:0] line;
    logic [11:0] parameter_index;
  } column_control_t;

  // The end of a matmul's stream, on its way to drain and end.
  typedef struct packed {
    logic valid, last;
    logic [3:0] block;
    logic [7:0] rows_minus_1, cols_minus_1;
    logic [19:0] channel;
    logic [3:0] signal;
    logic [31:0] index;
  } stream_end_t;
endpackage
