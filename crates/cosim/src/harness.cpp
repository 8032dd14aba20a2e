// Drives the Verilator model: reads a machine, instructions and a DRAM image; writes cycles, counters
// and the DRAM image afterwards. Usage: harness DIRECTORY [MAX_CYCLES]; files are named below.
#include "Vsystole.h"
#include "Vsystole___024root.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

double sc_time_stamp() { return 0; }

static std::vector<uint8_t> bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) { fprintf(stderr, "cannot read %s\n", path.c_str()); exit(2); }
    return {std::istreambuf_iterator<char>(file), {}};
}

int main(int argc, char** argv) {
    if (argc < 2) return 2;
    const std::string dir = std::string(argv[1]) + "/";
    const uint64_t limit = argc > 2 ? strtoull(argv[2], nullptr, 10) : 100000000;
    std::map<std::string, uint64_t> key;
    std::ifstream config(dir + "machine.txt");
    for (std::string name; config >> name;) config >> key[name];

    VerilatedContext context;
    Vsystole top(&context);
#if VM_TRACE
    // Cycle t begins at 10 t, as in the model's waveforms: a cycle is shown as 1 ns.
    const uint64_t wave_from = key["wave_from"], wave_to = key["wave_to"];
    VerilatedVcdC vcd;
    if (wave_from < wave_to) {
        context.traceEverOn(true);
        top.trace(&vcd, 99);
        vcd.set_time_unit("100ps");
        vcd.set_time_resolution("100ps");
        vcd.open((dir + "rtl.vcd").c_str());
    }
    const auto dump = [&](uint64_t cycle, int half) {
        if (wave_from <= cycle && cycle < wave_to) vcd.dump(10 * cycle + 5 * half);
    };
#else
    const auto dump = [](uint64_t, int) {};
#endif
    const auto program = bytes_of(dir + "program.bin");
    auto dram = bytes_of(dir + "dram.bin");
    auto& cells = top.rootp->systole__DOT__u_dram__DOT__cells;
    auto& memory = top.rootp->systole__DOT__u_frontend__DOT__memory;
    const size_t n = program.size() / 16;
    if (dram.size() > sizeof(cells) || n > sizeof(memory) / 16) {
        fprintf(stderr, "the program does not fit the RTL's memories\n");
        return 2;
    }
    for (size_t i = 0; i < dram.size(); i++) cells[i] = dram[i];
    for (size_t i = 0; i < n; i++)
        for (int w = 0; w < 4; w++) {
            const uint8_t* b = &program[16 * i + 4 * w];
            memory[i][w] = b[0] | b[1] << 8 | b[2] << 16 | uint32_t(b[3]) << 24;
        }
    top.n_instructions = n;
    top.cfg_rows = key["rows"];
    top.cfg_cols = key["cols"];
    top.cfg_dataflow = key["dataflow"];
    top.cfg_block_rows = key["block_rows"];
    top.cfg_shadow = key["shadow"];
    top.cfg_acc_bits = key["acc_bits"];
    top.cfg_saturate = key["saturate"];
    top.cfg_rounding = key["rounding"];
    top.cfg_lanes = key["lanes"];
    top.cfg_queue_depth = key["queue_depth"];
    top.cfg_max_tokens = key["max_tokens"];
    top.cfg_dram_latency = key["dram_latency"];
    top.cfg_bytes_per_cycle = key["bytes_per_cycle"];
    top.cfg_burst_bytes = key["burst_bytes"];
    top.cfg_max_outstanding = key["max_outstanding"];

    std::vector<uint64_t> issue(n, ~0ull), start(n, ~0ull), end(n, ~0ull);
    const auto clock = [&](int value) {
        top.clk = value;
        top.eval();
    };
    top.reset = 1;
    for (int i = 0; i < 4; i++) { clock(0); clock(1); }
    // A cycle begins with the rising edge; the reset ends behind one.
    top.reset = 0;
    top.eval();
    uint64_t cycle = 0, total = 0;
    const char* status = "ok";
    const auto begin = std::chrono::steady_clock::now();
    for (;; cycle++) {
        if (top.done) break;
        dump(cycle, 0);
        if (top.token_overflow || top.deadlock) {
            status = top.token_overflow ? "token-overflow" : "deadlock";
            total = top.fault_index;
            break;
        }
        if (cycle == limit) { status = "timeout"; total = cycle; break; }
        if (top.trace_issue) {
            issue[top.trace_issue_index] = cycle;
            if (top.trace_fence) {
                start[top.trace_issue_index] = cycle;
                end[top.trace_issue_index] = total = cycle + 1;
            }
        }
        for (int u = 0; u < 4; u++) {
            if (top.trace_start >> u & 1) start[top.trace_start_index[u]] = cycle;
            if (top.trace_setup_end >> u & 1) end[top.trace_start_index[u]] = total = cycle + 1;
            if (top.trace_end >> u & 1) end[top.trace_end_index[u]] = total = cycle + 1;
        }
        if (top.trace_preload_end) end[top.trace_preload_end_index] = total = cycle + 1;
        clock(0);
        dump(cycle, 1);
        clock(1);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    for (size_t i = 0; i < dram.size(); i++) dram[i] = cells[i];
    std::ofstream(dir + "dram_after.bin", std::ios::binary)
        .write(reinterpret_cast<const char*>(dram.data()), dram.size());
    FILE* out = fopen((dir + "result.txt").c_str(), "w");
    if (!out) return 2;
    fprintf(out, "%s %llu %.9f\n", status, (unsigned long long)total, seconds.count());
    for (size_t i = 0; i < n; i++)
        fprintf(out, "i %lld %lld %lld\n", (long long)issue[i], (long long)start[i], (long long)end[i]);
    for (uint64_t channel = 0; channel < key["n_channels"]; channel++) {
        top.host_channel = channel;
        top.eval();
        const uint32_t first = top.host_first_k;
        fprintf(out, "c %llu %llu %lld %lld %lld\n", (unsigned long long)top.host_overflowed,
                (unsigned long long)top.host_touched, first == ~0u ? -1ll : (long long)first,
                (long long)top.host_min, (long long)top.host_max);
    }
    fclose(out);
#if VM_TRACE
    if (wave_from < wave_to) vcd.close();
#endif
    top.final();
    return 0;
}
