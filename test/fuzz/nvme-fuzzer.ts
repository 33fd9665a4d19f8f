/**
 * A hostile host of the served NVMe controller: random registers, queues, commands, PRP and SGL lists, in memory that comes and goes.
 * After each batch the controller must still work, and must have left alone what it may only read.
 */
import assert from 'node:assert/strict';
import { NVM, QUEUE, SQE } from '../../src/nvme/commands.js';
import { NVME_REGISTER as REG, submissionDoorbell } from '../../src/nvme/registers.js';
import { BASE, NvmeHost } from '../fakes/vfio-user/nvme-host.js';
import { pattern, turn } from '../fakes/vfio-user/model-host.js';
import { Random } from '../shared/random.js';

/** What a run did. */
export interface NvmeFuzzReport {
  inputs: number;
  batches: number;
  /** Commands that completed well, and that were refused. */
  done: number;
  refused: number;
  /** Times that the controller gave up (CFS), and was reset. */
  fatal: number;
}

/** How much, from which seed. */
export interface NvmeFuzzOptions {
  readonly inputs: number;
  readonly seed: number;
  /** Called after each batch. */
  readonly onBatch?: (report: NvmeFuzzReport) => void;
}

const BATCH = 2000;
const PAGE = 4096;
const MEMORY = 128 * PAGE;
/** Memory that may only be read, and its content. */
const READ_ONLY = BASE + 2 * MEMORY;
/** Memory that is mapped now and then. */
const SOMETIMES = BASE + 4 * MEMORY;
const DISK = 256 * 1024;

const VALUES = [
  0,
  1,
  2,
  3,
  4,
  7,
  8,
  15,
  16,
  63,
  64,
  255,
  511,
  512,
  2047,
  4095,
  4096,
  65535,
  65536,
  2 ** 31,
  2 ** 32 - 1,
];
const REGISTERS = [REG.CAP, REG.INTMS, REG.INTMC, REG.CC, REG.CSTS, REG.AQA, REG.ASQ, REG.ACQ, REG.NSSR, REG.CMBMSC];
const ADMIN_OPCODES = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c, 0x80];
const IO_OPCODES = [0, 1, 2, 5, 8, 9, 0xc];

/**
 * Gives `inputs` inputs to controllers, in batches. A failing batch can be repeated alone: the error tells its seed.
 *
 * @throws Error that names the seed of the batch that found something
 */
export async function fuzzNvme({ inputs, seed, onBatch }: NvmeFuzzOptions): Promise<NvmeFuzzReport> {
  const report: NvmeFuzzReport = { inputs: 0, batches: 0, done: 0, refused: 0, fatal: 0 };
  for (let n = 0; report.inputs < inputs; n++) {
    const count = Math.min(BATCH, inputs - report.inputs);
    try {
      await oneBatch(new Random(seed + n), count, report);
    } catch (cause) {
      throw new Error(`batch failed; repeat it with --seed ${seed + n} --inputs ${BATCH}`, { cause });
    }
    report.inputs += count;
    report.batches++;
    onBatch?.(report);
  }
  return report;
}

async function oneBatch(random: Random, inputs: number, report: NvmeFuzzReport): Promise<void> {
  const options = {
    namespaces: [{ size: DISK }, { size: DISK, blockSize: 4096 }],
    queues: random.pick([1, 4, 32]),
    queueEntries: random.pick([2, 64, 4096]),
    doorbellStride: random.pick([4, 4, 16, 32]),
    maxTransfer: random.pick([4096, 65536, 2 ** 20]),
    sgl: !random.oneIn(4),
    memoryBuffer: random.pick([0, 65536]),
    hostMemory: random.pick([0, 8192]),
  };
  const nvme = new NvmeHost(
    options,
    random.pick(['direct', 'direct', 'copied', 'messages'] as const),
    undefined,
    MEMORY,
  );
  const untouched = pattern(16 * PAGE, 3);
  const readOnly = nvme.memory.map(READ_ONLY, untouched.slice(), 'read');
  const host = new Hostile(nvme, random);
  try {
    for (let n = 0; n < inputs; n++) {
      host.act();
      if (random.oneIn(4)) await turn();
    }
    host.calm();
    await turn(20);
    assert.deepEqual(readOnly, untouched, 'memory that may only be read has changed');
    report.done += host.done;
    report.refused += host.refused;
    report.fatal += host.fatal;
    await proveAlive(nvme);
  } finally {
    nvme.close();
  }
}

/** After all of that, a host that behaves is served. */
async function proveAlive(nvme: NvmeHost): Promise<void> {
  const quiet = nvme.host.model.quiesce();
  if (quiet !== undefined) await quiet;
  nvme.host.model.reset();
  nvme.host.model.resume();
  nvme.bytes.fill(0);
  await nvme.enable();
  const queue = await nvme.createQueue(1, 2);
  const into = nvme.pages();
  // One block, because it may have been formatted to any size.
  assert.equal((await nvme.read(queue, 0, 1, into)).status, 0);
}

/** See the head of the file. */
class Hostile {
  done = 0;
  refused = 0;
  fatal = 0;
  #paused = false;
  #mapped = false;

  constructor(
    private readonly nvme: NvmeHost,
    private readonly random: Random,
  ) {}

  /** Does one hostile thing. */
  act(): void {
    const { nvme, random } = this;
    // Often enough it is up and running, so that commands get somewhere.
    if (this.#paused && random.oneIn(2)) this.calm();
    if ((nvme.host.read32(REG.CSTS) & 3) !== 1 && random.oneIn(3)) this.#bringUp();
    switch (random.below(16)) {
      case 0:
        if (random.oneIn(4)) this.#store(random.pick(REGISTERS) + (random.oneIn(4) ? 4 : 0), random.pick(VALUES));
        return;
      case 1:
        if (random.oneIn(8)) this.#store(random.below(0x2000), random.below(2 ** 32));
        return;
      case 2:
        nvme.host.load(random.below(0x1800), random.pick([1, 2, 4, 8]));
        return;
      case 3:
        if (random.oneIn(16)) this.#bringUp();
        return;
      case 4:
        if (random.oneIn(20)) nvme.host.model.reset();
        return;
      case 5:
        this.#pause();
        return;
      case 6:
        this.#scribble();
        return;
      case 7:
        if (!random.oneIn(4)) return;
        if (this.#mapped) nvme.memory.unmap(SOMETIMES);
        else nvme.memory.map(SOMETIMES, new Uint8Array(8 * PAGE));
        this.#mapped = !this.#mapped;
        return;
      case 8:
        // A doorbell of any queue, with any value.
        this.#store(
          submissionDoorbell(random.below(6), nvme.stride) + (random.oneIn(2) ? nvme.stride : 0),
          random.pick(VALUES),
        );
        return;
      default:
        this.#submit();
    }
  }

  /** Ends what it began that would stop others. */
  calm(): void {
    if (this.#paused) this.nvme.host.model.resume();
    this.#paused = false;
  }

  #store(offset: number, value: number): void {
    const size = this.nvme.host.model.regions[0].size;
    if (offset + 4 <= size) this.nvme.host.write32(offset, value);
  }

  /** Queues of the controller that the host may use: the first pages of its memory. */
  #bringUp(): void {
    const { nvme, random } = this;
    if ((nvme.host.read32(REG.CSTS) & 2) !== 0) this.fatal++;
    nvme.host.write32(REG.CC, 0);
    nvme.bytes.fill(0, 0, 16 * PAGE);
    nvme.host.write32(REG.AQA, random.oneIn(8) ? random.below(2 ** 32) : 0x003f003f);
    nvme.host.write64(REG.ASQ, BigInt(random.oneIn(8) ? this.#address() : BASE));
    nvme.host.write64(REG.ACQ, BigInt(random.oneIn(8) ? this.#address() : BASE + PAGE));
    nvme.host.write32(REG.CC, random.oneIn(8) ? random.below(2 ** 32) | 1 : 0x00460001);
    this.#tails.fill(0);
    // And a pair of I/O queues.
    const size = random.pick([1, 7, 63]);
    this.#entry(0, 5, 0, BASE + 4 * PAGE, 0, 1 | (size << 16), QUEUE.CONTIGUOUS | QUEUE.INTERRUPTS);
    this.#entry(0, 1, 0, BASE + 2 * PAGE, 0, 1 | (size << 16), QUEUE.CONTIGUOUS | (1 << 16));
    this.#sizes[1] = size + 1;
  }

  readonly #tails = new Uint32Array(2);
  readonly #heads = new Uint32Array(2);
  readonly #sizes = new Uint32Array([64, 64]);

  /** Puts an entry into one of the two queues, and rings. */
  #entry(queue: number, opcode: number, nsid: number, prp1: number, prp2: number, cdw10: number, cdw11: number): void {
    const { nvme, random } = this;
    const at = queue * 2 * PAGE + this.#tails[queue] * 64;
    const { view } = nvme;
    view.setUint32(at, opcode | (random.oneIn(8) ? random.below(256) << 8 : 0) | (random.below(65536) << 16), true);
    view.setUint32(at + SQE.NSID, nsid, true);
    nvme.put64(BASE + at + SQE.PRP1, prp1);
    nvme.put64(BASE + at + SQE.PRP2, prp2);
    view.setUint32(at + SQE.CDW10, cdw10, true);
    view.setUint32(at + SQE.CDW11, cdw11, true);
    view.setUint32(at + SQE.CDW12, random.oneIn(4) ? random.below(2 ** 32) : random.below(64), true);
    view.setUint32(at + SQE.CDW13, random.oneIn(8) ? random.pick(VALUES) : 0, true);
    this.#tails[queue] = (this.#tails[queue] + 1) % this.#sizes[queue];
    this.#store(submissionDoorbell(queue, nvme.stride), this.#tails[queue]);
  }

  #submit(): void {
    const { random } = this;
    const queue = random.oneIn(3) ? 0 : 1;
    const opcode = random.oneIn(10) ? random.below(256) : random.pick(queue === 0 ? ADMIN_OPCODES : IO_OPCODES);
    const nsid = random.oneIn(8) ? random.pick(VALUES) : 1 + random.below(2);
    const high = random.oneIn(10) ? random.pick(VALUES) : 0;
    const low = random.oneIn(4) ? random.below(2 ** 32) : random.below(queue === 0 ? 16 : DISK / 512);
    // Lists of addresses, where lists may be.
    if (random.oneIn(2)) this.#list();
    this.#entry(
      queue,
      opcode,
      nsid,
      this.#address(),
      this.#address(),
      low,
      queue === 1 && opcode !== NVM.DATASET_MANAGEMENT ? high : random.pick(VALUES),
    );
    if (random.oneIn(3)) this.#reap(queue);
  }

  /** Takes completions, as a host that counts would, and tells of it. */
  #reap(queue: number): void {
    const { nvme } = this;
    const base = (queue * 3 + 1) * PAGE;
    for (let n = 0; n < 8; n++) {
      const word = nvme.view.getUint32(base + this.#heads[queue] * 16 + 12, true);
      if (word === 0) break;
      if (word >>> 17 === 0) this.done++;
      else this.refused++;
      nvme.view.setUint32(base + this.#heads[queue] * 16 + 12, 0, true);
      this.#heads[queue] = (this.#heads[queue] + 1) % this.#sizes[queue];
    }
    this.#store(submissionDoorbell(queue, nvme.stride) + nvme.stride, this.#heads[queue]);
  }

  /** An address of any kind: good, in the middle of a page, only to be read, not mapped, or none at all. */
  #address(): number {
    const { random } = this;
    const page = BASE + (8 + random.below(120)) * PAGE;
    switch (random.below(10)) {
      case 0:
        return page + random.below(PAGE);
      case 1:
        return READ_ONLY + random.below(16) * PAGE;
      case 2:
        return SOMETIMES + random.below(8) * PAGE;
      case 3:
        return random.pick([0, 4096, BASE - PAGE, BASE + MEMORY - PAGE, BASE + MEMORY, 2 ** 40, 2 ** 52, 2 ** 53]);
      case 4:
        return page + random.pick([8, 4088, 4080, 2048]);
      default:
        return page;
    }
  }

  /** Fills a part of a page with addresses, or with SGL descriptors. */
  #list(): void {
    const { nvme, random } = this;
    const page = (8 + random.below(120)) * PAGE;
    const step = random.oneIn(3) ? 16 : 8;
    for (let at = random.pick([0, 4000, 4080]); at + step <= PAGE; at += step) {
      nvme.put64(BASE + page + at, this.#address());
      if (step === 8) continue;
      nvme.view.setUint32(page + at + 8, random.oneIn(4) ? random.pick(VALUES) : random.below(64) * 16, true);
      nvme.view.setUint32(page + at + 12, random.pick([0, 0, 0, 1, 2, 3, 4, 15]) << 28, true);
    }
  }

  #scribble(): void {
    const { nvme, random } = this;
    // Seldom over the queues themselves.
    const at = random.oneIn(8) ? random.below(MEMORY - 64) : 8 * PAGE + random.below(MEMORY - 8 * PAGE - 64);
    nvme.bytes.set(random.bytes(1 + random.below(64)), at);
  }

  #pause(): void {
    const { model } = this.nvme.host;
    if (this.#paused) model.resume();
    else {
      const quiet = model.quiesce();
      // The host would wait; here it goes on being hostile.
      if (quiet !== undefined) void quiet;
    }
    this.#paused = !this.#paused;
  }
}
