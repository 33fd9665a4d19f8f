/** For tests of the served NVMe controller: a host with plain memory, and a naive driver. */
import assert from 'node:assert/strict';
import { ADMIN, CNS, NVM, PSDT, QUEUE, SQE } from '../../../src/nvme/commands.js';
import {
  capabilitiesOf,
  CC,
  completionDoorbell,
  CSTS,
  NVME_REGISTER as REG,
  submissionDoorbell,
} from '../../../src/nvme/registers.js';
import { STATUS_FIELD } from '../../../src/nvme/status.js';
import type { ImageCalls } from '../../../src/vfio-user/devices/nvme/image.js';
import { nvmeModel } from '../../../src/vfio-user/devices/nvme/nvme.js';
import type { NvmeModelOptions } from '../../../src/vfio-user/devices/nvme/options.js';
import { FakeDma, FakeModelHost, type Reach, turn } from './model-host.js';

/** Where the memory of the host begins. */
export const BASE = 0x1_0000_0000;
const PAGE = 4096;

/** What goes into an entry. Dwords 10 to 15 by their names. */
export interface Entry {
  readonly opcode: number;
  readonly nsid?: number;
  readonly prp1?: number;
  readonly prp2?: number;
  /** An SGL descriptor of 16 bytes, instead of PRP entries. */
  readonly sgl?: Uint8Array;
  readonly flags?: number;
  readonly cid?: number;
  readonly cdw10?: number;
  readonly cdw11?: number;
  readonly cdw12?: number;
  readonly cdw13?: number;
  readonly cdw14?: number;
  readonly cdw15?: number;
}

/** A completion, as the host saw it. */
export interface Completed {
  readonly cid: number;
  readonly sq: number;
  readonly sqHead: number;
  /** type and code */
  readonly status: number;
  readonly dnr: boolean;
  readonly result: number;
}

/** A pair of queues in the host's memory. */
export class HostQueue {
  tail = 0;
  head = 0;
  phase = 1;
  nextId = 1;

  constructor(
    readonly id: number,
    readonly sq: number,
    readonly cq: number,
    readonly size: number,
    readonly cqSize: number,
  ) {}
}

/** A host of a served controller. */
export class NvmeHost {
  readonly memory: FakeDma;
  readonly host: FakeModelHost;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly vectors: number[] = [];
  admin: HostQueue;
  /** Doorbells in memory, once they are configured. */
  shadow: { readonly doorbells: number; readonly events: number } | undefined;
  /** Writes to doorbell registers. */
  rung = 0;
  #free = BASE;

  constructor(options?: NvmeModelOptions, reach: Reach = 'direct', calls?: ImageCalls, size = 16 * 2 ** 20) {
    this.memory = new FakeDma(reach);
    this.bytes = this.memory.map(BASE, new Uint8Array(size));
    this.view = new DataView(this.bytes.buffer);
    this.host = new FakeModelHost(nvmeModel(options, undefined, calls), this.memory);
    this.host.onInterrupt = (vector) => void this.vectors.push(vector);
    this.admin = this.queue(0, 16);
  }

  /** Pages of the host's memory, by their address. */
  pages(count = 1): number {
    const at = this.#free;
    this.#free += count * PAGE;
    assert.ok(this.#free <= BASE + this.bytes.length, 'the host has no more memory');
    return at;
  }

  /** The bytes at an address. */
  at(iova: number, length: number): Uint8Array {
    return this.bytes.subarray(iova - BASE, iova - BASE + length);
  }

  put64(iova: number, value: number): void {
    this.view.setUint32(iova - BASE, value % 2 ** 32, true);
    this.view.setUint32(iova - BASE + 4, value / 2 ** 32, true);
  }

  queue(id: number, size: number, cqSize = size): HostQueue {
    return new HostQueue(id, this.pages(Math.ceil(size / 64)), this.pages(Math.ceil(cqSize / 256)), size, cqSize);
  }

  get stride(): number {
    return capabilitiesOf(this.host.read32(REG.CAP), this.host.read32(REG.CAP + 4)).doorbellStride;
  }

  /** Enables the controller with its admin queues. @param cc more bits of CC */
  async enable(cc = 0): Promise<this> {
    const { host, admin } = this;
    this.at(admin.cq, admin.cqSize * 16).fill(0);
    admin.tail = admin.head = 0;
    admin.phase = 1;
    host.write32(REG.AQA, (admin.size - 1) | ((admin.cqSize - 1) << 16));
    host.write64(REG.ASQ, BigInt(admin.sq));
    host.write64(REG.ACQ, BigInt(admin.cq));
    host.write32(REG.CC, CC.EN | (6 << CC.IOSQES_SHIFT) | (4 << CC.IOCQES_SHIFT) | cc);
    await this.until(() => (host.read32(REG.CSTS) & (CSTS.RDY | CSTS.CFS)) !== 0);
    return this;
  }

  async disable(): Promise<void> {
    this.host.write32(REG.CC, 0);
    await this.until(() => (this.host.read32(REG.CSTS) & CSTS.RDY) === 0);
  }

  /** Puts an entry into a queue, without ringing. Returns its identifier. */
  put(queue: HostQueue, entry: Entry): number {
    const at = queue.sq + queue.tail * 64 - BASE;
    this.bytes.fill(0, at, at + 64);
    const { view } = this;
    const cid = entry.cid ?? queue.nextId++ & 0xffff;
    view.setUint8(at + SQE.OPCODE, entry.opcode);
    view.setUint8(at + SQE.FLAGS, entry.flags ?? (entry.sgl === undefined ? 0 : PSDT.SGL << PSDT.SHIFT));
    view.setUint16(at + SQE.CID, cid, true);
    view.setUint32(at + SQE.NSID, entry.nsid ?? 0, true);
    this.put64(BASE + at + SQE.PRP1, entry.prp1 ?? 0);
    this.put64(BASE + at + SQE.PRP2, entry.prp2 ?? 0);
    if (entry.sgl !== undefined) this.bytes.set(entry.sgl, at + SQE.SGL);
    view.setUint32(at + SQE.CDW10, entry.cdw10 ?? 0, true);
    view.setUint32(at + SQE.CDW11, entry.cdw11 ?? 0, true);
    view.setUint32(at + SQE.CDW12, entry.cdw12 ?? 0, true);
    view.setUint32(at + SQE.CDW13, entry.cdw13 ?? 0, true);
    view.setUint32(at + SQE.CDW14, entry.cdw14 ?? 0, true);
    view.setUint32(at + SQE.CDW15, entry.cdw15 ?? 0, true);
    queue.tail = (queue.tail + 1) % queue.size;
    return cid;
  }

  ring(queue: HostQueue): void {
    this.rung++;
    this.host.write32(submissionDoorbell(queue.id, this.stride), queue.tail);
  }

  /** Takes new completions. @param silently without telling the controller that there is room again */
  take(queue: HostQueue, silently = false): Completed[] {
    const taken: Completed[] = [];
    for (;;) {
      const at = queue.cq + queue.head * 16 - BASE;
      const word = this.view.getUint32(at + 12, true);
      if (((word >>> 16) & 1) !== queue.phase) break;
      const field = word >>> 17;
      taken.push({
        cid: word & 0xffff,
        sq: this.view.getUint16(at + 10, true),
        sqHead: this.view.getUint16(at + 8, true),
        status: field & STATUS_FIELD.CODE_MASK,
        dnr: (field & STATUS_FIELD.DNR) !== 0,
        result: this.view.getUint32(at, true),
      });
      queue.head = (queue.head + 1) % queue.cqSize;
      if (queue.head === 0) queue.phase ^= 1;
    }
    if (taken.length > 0 && !silently) this.host.write32(completionDoorbell(queue.id, this.stride), queue.head);
    return taken;
  }

  /** Waits until `count` commands have completed. */
  async finish(queue: HostQueue, count = 1): Promise<Completed[]> {
    const all: Completed[] = [];
    await this.until(() => {
      all.push(...this.take(queue));
      return all.length >= count;
    });
    assert.equal(all.length, count);
    return all;
  }

  /** Sends one command and waits for it. */
  async run(queue: HostQueue, entry: Entry): Promise<Completed> {
    const cid = this.put(queue, entry);
    this.ring(queue);
    const [completed] = await this.finish(queue);
    assert.equal(completed.cid, cid);
    return completed;
  }

  /** As {@link run}, on the admin queue; only the status. */
  async status(entry: Entry, queue = this.admin): Promise<number> {
    return (await this.run(queue, entry)).status;
  }

  /** An answer of IDENTIFY. */
  async identify(cns: number, nsid = 0): Promise<Uint8Array> {
    const page = this.pages();
    assert.equal(await this.status({ opcode: ADMIN.IDENTIFY, nsid, prp1: page, cdw10: cns }), 0);
    return this.at(page, PAGE);
  }

  /** Makes a pair of I/O queues. */
  async createQueue(id = 1, size = 64, cqSize = size, vector = id): Promise<HostQueue> {
    const queue = this.queue(id, size, cqSize);
    const cdw11 = QUEUE.CONTIGUOUS | QUEUE.INTERRUPTS | (vector << 16);
    assert.equal(
      await this.status({ opcode: ADMIN.CREATE_CQ, prp1: queue.cq, cdw10: id | ((cqSize - 1) << 16), cdw11 }),
      0,
    );
    assert.equal(
      await this.status({
        opcode: ADMIN.CREATE_SQ,
        prp1: queue.sq,
        cdw10: id | ((size - 1) << 16),
        cdw11: QUEUE.CONTIGUOUS | (id << 16),
      }),
      0,
    );
    return queue;
  }

  /** PRP entries for `length` bytes from `iova` on; makes lists as needed. */
  prps(iova: number, length: number, listOffset = 0): { prp1: number; prp2: number } {
    const first = Math.min(length, PAGE - (iova % PAGE));
    const addresses: number[] = [];
    for (let at = first; at < length; at += PAGE) addresses.push(iova + at);
    if (addresses.length === 0) return { prp1: iova, prp2: 0 };
    if (addresses.length === 1) return { prp1: iova, prp2: addresses[0] };
    return { prp1: iova, prp2: this.list(addresses, listOffset) };
  }

  /** A PRP list of these addresses, which begins `offset` bytes into its first page. */
  list(addresses: readonly number[], offset = 0): number {
    const begin = this.pages() + offset;
    let at = begin;
    let left = addresses.length;
    for (const address of addresses) {
      if ((at + 8) % PAGE === 0 && left > 1) {
        const next = this.pages();
        this.put64(at, next);
        at = next;
      }
      this.put64(at, address);
      at += 8;
      left--;
    }
    return begin;
  }

  /** The entry of a read or write of whole blocks. */
  io(opcode: number, lba: number, blocks: number, iova: number, blockSize = 512, more: Partial<Entry> = {}): Entry {
    return {
      opcode,
      nsid: 1,
      ...this.prps(iova, blocks * blockSize),
      cdw10: lba,
      cdw11: 0,
      cdw12: blocks - 1,
      ...more,
    };
  }

  read(queue: HostQueue, lba: number, blocks: number, iova: number, blockSize = 512): Promise<Completed> {
    return this.run(queue, this.io(NVM.READ, lba, blocks, iova, blockSize));
  }

  write(queue: HostQueue, lba: number, blocks: number, iova: number, blockSize = 512): Promise<Completed> {
    return this.run(queue, this.io(NVM.WRITE, lba, blocks, iova, blockSize));
  }

  async namespaceList(): Promise<Uint8Array> {
    return this.identify(CNS.ACTIVE_NAMESPACES);
  }

  /** Lets the event loop turn until `condition`. */
  async until(condition: () => boolean, turns = 20_000): Promise<void> {
    for (let n = 0; !condition(); n++) {
      assert.ok(n < turns, 'the controller does not do it');
      await turn();
      // Files are read on other threads.
      if (n > 100) await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  close(): void {
    this.host.model.close?.();
  }
}
