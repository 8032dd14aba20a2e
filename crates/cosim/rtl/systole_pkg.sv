// Shared types: the machine's settings, and what travels between the units.
package systole_pkg;
  // Units, as numbered in token masks.
  localparam int LOAD = 0, ARRAY = 1, POST = 2, STORE = 3;

  // Dataflows.
  localparam logic [1:0] OUTPUT_STATIONARY = 0, WEIGHT_STATIONARY = 1, INPUT_STATIONARY = 2;

  // Memories, as numbered in `load`.
  localparam logic [1:0] ACTIVATIONS = 0, WEIGHTS = 1, PARAMETERS = 2;

  // A queued instruction: its bits and its place in the program (for the trace).
  typedef struct packed {
    logic [31:0] index;
    logic [127:0] bits;
  } entry_t;

  // What a unit says in the last cycle of an instruction.
  typedef struct packed {
    logic valid;
    logic [3:0] signal_mask;
    logic [31:0] index;
  } finish_t;

  // A DMA burst.
  typedef struct packed {
    logic [1:0] memory;
    logic [31:0] dram_address;
    logic [23:0] chip_address;
    logic [16:0] n_bytes;
    logic is_last;  // of its instruction
    logic [3:0] signal_mask;
    logic [31:0] index;
  } burst_t;

  // Machine settings, constant during a run. Sizes of memories only limit programs, which the
  // compiler has checked, so the hardware does not know them.
  typedef struct packed {
    logic [8:0] rows;
    logic [8:0] cols;
    logic [1:0] dataflow;
    logic shadow;              // accumulators when output-stationary, else operands
    logic [5:0] acc_bits;
    logic saturate;
    logic [12:0] block_rows;   // entries of a block
    logic [1:0] rounding;      // 0 half up, 1 half away from zero, 2 half even, 3 floor
    logic [10:0] lanes;
    logic [12:0] queue_depth;
    logic [15:0] max_tokens;
    logic [16:0] dram_latency;
    logic [10:0] bytes_per_cycle;
    logic [16:0] burst_bytes;
    logic [12:0] max_outstanding;
  } config_t;

  // A parameter table entry; of its eight bytes these mean something.
  typedef struct packed {
    logic [7:0] shift;
    logic [7:0] mantissa;
    logic [7:0] bias_shift;
    logic signed [15:0] bias_mantissa;
  } parameter_t;

  // A tap of the kernel.
  typedef struct packed {
    logic [7:0] y, x;
    logic [15:0] channel;
  } tap_t;

  // One read of an activation nibble: the output pixel, the tap, and the tile it lies in.
  typedef struct packed {
    logic valid;
    logic high;                // the byte's high half is asked for (8-bit activations)
    logic wide, is_signed;
    logic [13:0] oy, ox, output_width;
    tap_t tap;
    logic [7:0] stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left;
    logic [15:0] channel;      // of tap channel 0
    logic [23:0] address;
    logic [13:0] width, height;
    logic [15:0] pixel_bytes;
  } activation_read_t;

  // One read of a weight nibble.
  typedef struct packed {
    logic valid;
    logic high;                // the line of high nibbles
    logic wide;
    logic [19:0] line;
  } weight_read_t;

  // An operand nibble as the multiplier takes it: one bit more than the nibble, two's complement.
  typedef struct packed {
    logic high;
    logic signed [4:0] value;
  } nibble_t;

  // What a pass does in a PE; it goes down the columns with the upper operand.
  typedef struct packed {
    logic valid;
    logic first;               // of its step: the product begins
    logic last;                // of its step: the product is added
    logic init;                // the sum begins with the bias
    logic fold_last;           // the sum is finished (output-stationary)
    logic take;                // the chain's value becomes the operand (stationary)
  } pass_t;

  // A pass on its way down the rows: who reads the left operand, and where.
  typedef struct packed {
    activation_read_t activation;
    weight_read_t weight;      // input-stationary
    logic take;                // the latched tap becomes the row's (weight-stationary)
  } row_control_t;

  // A cycle on its way along the columns: a pass of the stream, and a line of the preload.
  typedef struct packed {
    pass_t pass;
    logic upper_high;          // the upper operand's high nibble takes part
    logic reads_bias;
    logic [11:0] parameter_index;
    logic preloads;            // what is read goes into the shift chain
    logic chain_shift;         // first nibble of its line: the chain moves up
    logic in_use;              // rows not in use hold 0
    weight_read_t weight;
    activation_read_t activation;  // input-stationary
  } column_control_t;

  // The tap that a row keeps (weight-stationary).
  typedef struct packed {
    logic valid;
    logic [7:0] row;
    logic in_use;
    tap_t tap;
  } latch_t;

  // The end of a fold's stream or of an element, on its way to drain, bottom adder and end.
  typedef struct packed {
    logic valid;
    logic writes;              // into the block: a fold's last matmul, every element of a stream
    logic accumulate;          // onto what the block holds
    logic counts;              // into the overflow counters
    logic ends;                // the instruction
    logic [3:0] block;
    logic [11:0] row;          // of the block: the first, or the element's
    logic [7:0] rows_minus_1, cols_minus_1;
    logic [20:0] channel;
    logic [3:0] signal_mask;
    logic [31:0] index;
    logic [31:0] last_k;       // of the fold (stationary; for the overflow counters)
  } landing_t;

  // Work of the post unit.
  localparam logic [1:0] REQUANTIZING = 0, POOLING = 1, CONVOLVING = 2;

  // What the post unit's lanes read in a cycle.
  typedef struct packed {
    logic valid;
    logic [1:0] work;
    logic is_sum;              // pooling: sum, not largest
    logic first_tap, first_pass, last_pass;
    logic last;                // of an output: it goes on to the multiplier
    logic ends;                // the instruction
    logic activation_high, weight_high;
    logic in_tile;             // the tap lies in the source's tile
    logic [15:0] tap;          // its number
    logic [31:0] source_pixel; // its first byte
    logic [13:0] row;          // output: block row or pixel
    logic [13:0] column, n_columns;  // first of the group, all
    logic [15:0] channel, source_channel;
    logic [11:0] parameter_index;
    logic [19:0] counter;
    logic [7:0] mantissa;      // pooling
    logic [5:0] shift;
    logic add_residual, use_slope;
    logic [3:0] signal_mask;
    logic [31:0] index;
  } post_step_t;

  // What the stages behind it need of an instruction's registers.
  typedef struct packed {
    logic valid, ends;
    logic [1:0] size;
    logic signed [15:0] q_min, q_max;
    logic use_slope;
    logic [7:0] slope_mantissa;
    logic [3:0] slope_shift;
    logic [7:0] residual_mantissa;
    logic [5:0] residual_shift;
    logic [3:0] signal_mask;
    logic [31:0] index;
  } post_stage_t;

  // What a lane's accumulator does in this cycle (for the overflow counters).
  typedef struct packed {
    logic adds, starts, ends, overflowed;
    logic signed [31:0] start_value;
    logic signed [17:0] product;
    logic [15:0] k;
    logic [20:0] channel;
  } lane_event_t;
endpackage
