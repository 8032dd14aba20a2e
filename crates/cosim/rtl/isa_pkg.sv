// The instruction set: opcodes, the unit of each, and every instruction's fields.
// Written from the list in crates/isa/src/ops.rs: UPDATE_EXPECT=1 cargo test -p cosim --test isa_package
// Opcodes stand in the order of the list; a struct is the whole 128-bit word, its first field the highest bits.
package isa_pkg;
  localparam logic [5:0] OP_FENCE = 0;
  localparam logic [5:0] OP_LOAD_PITCH = 1;
  localparam logic [5:0] OP_LOAD = 2;
  localparam logic [5:0] OP_STORE_PITCH = 3;
  localparam logic [5:0] OP_STORE = 4;
  localparam logic [5:0] OP_INPUT = 5;
  localparam logic [5:0] OP_KERNEL = 6;
  localparam logic [5:0] OP_MATMUL = 7;
  localparam logic [5:0] OP_SOURCE = 8;
  localparam logic [5:0] OP_WINDOW = 9;
  localparam logic [5:0] OP_DESTINATION = 10;
  localparam logic [5:0] OP_RESIDUAL = 11;
  localparam logic [5:0] OP_SLOPE = 12;
  localparam logic [5:0] OP_REQUANTIZE = 13;
  localparam logic [5:0] OP_POOL = 14;
  localparam logic [5:0] OP_PRELOAD = 15;
  localparam logic [5:0] OP_STREAM = 16;
  localparam logic [5:0] OP_FILTER = 17;
  localparam logic [5:0] OP_DEPTHWISE = 18;

  // The unit of an opcode: 0 load, 1 array, 2 post, 3 store.
  function automatic logic [1:0] unit_of(input logic [5:0] opcode);
    case (opcode)
      OP_LOAD_PITCH, OP_LOAD: unit_of = 0;
      OP_INPUT, OP_KERNEL, OP_MATMUL, OP_PRELOAD, OP_STREAM: unit_of = 1;
      OP_STORE_PITCH, OP_STORE: unit_of = 3;
      default: unit_of = 2;
    endcase
  endfunction

  typedef struct packed {
    logic [57:0] unused;
    logic [23:0] chip_pitch;
    logic [31:0] dram_pitch;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } load_pitch_t;

  typedef struct packed {
    logic [19:0] unused;
    logic [19:0] row_bytes;
    logic [15:0] n_rows;
    logic [23:0] chip_address;
    logic [31:0] dram_address;
    logic [1:0] memory;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } load_t;

  typedef struct packed {
    logic [57:0] unused;
    logic [23:0] chip_pitch;
    logic [31:0] dram_pitch;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } store_pitch_t;

  typedef struct packed {
    logic [21:0] unused;
    logic [19:0] row_bytes;
    logic [15:0] n_rows;
    logic [23:0] chip_address;
    logic [31:0] dram_address;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } store_t;

  typedef struct packed {
    logic [10:0] unused;
    logic wide_weights;
    logic signed_activations;
    logic wide_activations;
    logic [15:0] n_channels;
    logic [15:0] channel;
    logic [15:0] pixel_bytes;
    logic [13:0] height;
    logic [13:0] width;
    logic [23:0] address;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } input_t;

  typedef struct packed {
    logic [35:0] unused;
    logic [13:0] output_width;
    logic [7:0] pad_left;
    logic [7:0] pad_top;
    logic [7:0] dilation_x;
    logic [7:0] dilation_y;
    logic [7:0] stride_x;
    logic [7:0] stride_y;
    logic [7:0] width;
    logic [7:0] height;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } kernel_t;

  typedef struct packed {
    logic [1:0] unused;
    logic [19:0] channel;
    logic [11:0] parameter_;
    logic last;
    logic first;
    logic [15:0] n_steps;
    logic [3:0] block;
    logic [17:0] weight_line;
    logic [7:0] cols_minus_1;
    logic [7:0] rows_minus_1;
    logic [11:0] x;
    logic [11:0] y;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } matmul_t;

  typedef struct packed {
    logic [43:0] unused;
    logic signed_;
    logic wide;
    logic [15:0] pixel_bytes;
    logic [13:0] height;
    logic [13:0] width;
    logic [23:0] address;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } source_t;

  typedef struct packed {
    logic [49:0] unused;
    logic [7:0] pad_left;
    logic [7:0] pad_top;
    logic [7:0] dilation_x;
    logic [7:0] dilation_y;
    logic [7:0] stride_x;
    logic [7:0] stride_y;
    logic [7:0] width;
    logic [7:0] height;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } window_t;

  typedef struct packed {
    logic [25:0] unused;
    logic signed [15:0] q_max;
    logic signed [15:0] q_min;
    logic [1:0] size;
    logic [15:0] pixel_bytes;
    logic [13:0] width;
    logic [23:0] address;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } destination_t;

  typedef struct packed {
    logic [3:0] unused;
    logic [15:0] n_channels;
    logic [15:0] channel;
    logic [5:0] shift;
    logic [7:0] mantissa;
    logic [3:0] stride_x;
    logic [3:0] stride_y;
    logic signed_;
    logic wide;
    logic [15:0] pixel_bytes;
    logic [13:0] width;
    logic [23:0] address;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } residual_t;

  typedef struct packed {
    logic [101:0] unused;
    logic [3:0] shift;
    logic [7:0] mantissa;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } slope_t;

  typedef struct packed {
    logic [23:0] unused;
    logic use_slope;
    logic add_residual;
    logic [15:0] channel;
    logic [11:0] parameter_;
    logic [11:0] row;
    logic [7:0] cols_minus_1;
    logic [11:0] rows_minus_1;
    logic [11:0] x;
    logic [11:0] y;
    logic [3:0] block;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } requantize_t;

  typedef struct packed {
    logic [12:0] unused;
    logic use_slope;
    logic add_residual;
    logic [5:0] shift;
    logic [7:0] mantissa;
    logic sum;
    logic [13:0] n_channels;
    logic [15:0] source_channel;
    logic [15:0] channel;
    logic [13:0] n_pixels;
    logic [11:0] x;
    logic [11:0] y;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } pool_t;

  typedef struct packed {
    logic [54:0] unused;
    logic first;
    logic [17:0] weight_line;
    logic [7:0] cols_minus_1;
    logic [7:0] rows_minus_1;
    logic [11:0] x;
    logic [11:0] y;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } preload_t;

  typedef struct packed {
    logic [1:0] unused;
    logic last;
    logic accumulate;
    logic [19:0] channel;
    logic [11:0] parameter_;
    logic [11:0] row;
    logic [3:0] block;
    logic [17:0] weight_line;
    logic [7:0] cols_minus_1;
    logic [11:0] n_minus_1;
    logic [11:0] x;
    logic [11:0] y;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } stream_t;

  typedef struct packed {
    logic [56:0] unused;
    logic [19:0] counter;
    logic [11:0] parameter_;
    logic wide_weights;
    logic [23:0] weight_address;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } filter_t;

  typedef struct packed {
    logic [27:0] unused;
    logic use_slope;
    logic add_residual;
    logic [13:0] n_channels;
    logic [15:0] source_channel;
    logic [15:0] channel;
    logic [13:0] n_pixels;
    logic [11:0] x;
    logic [11:0] y;
    logic [3:0] signal_mask;
    logic [3:0] wait_mask;
    logic [5:0] opcode;
  } depthwise_t;
endpackage
