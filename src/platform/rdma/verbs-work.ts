/**
 * Work requests and completions in the layout of libibverbs, in memory that never moves. Create them once, fill them in
 * by stores and reuse them: neither a request nor a completion allocates.
 *
 * Slots count from 0. Setters check only the number of segments: `VerbsPort.postSend` and `postReceive` refuse slots
 * out of range. Ids and addresses are integers in [0, 2^53); lengths and keys have 32 bits.
 */
import { invalid } from '../../errors.js';
import { show } from '../../show.js';
import type { Va } from '../../units.js';
import type { VerbsAh, VerbsMr, VerbsMw, VerbsPd } from './verbs-types.js';
import * as abi from './abi/requests.js';
import { STAYS } from '../../stays.js';

const { RECV_WR, SEND_WR, SGE, WC } = abi;

/** Gives the address of an array; a `MemoryPort` is one. */
export interface Addresses {
  addressOf(view: ArrayBufferView): Va;
}

/** Objects that a request points to. */
type Target = VerbsAh | VerbsMr | VerbsMw;

/** Common part of send and receive requests. */
export abstract class Requests {
  /** @internal */
  readonly stays = STAYS;
  /** How many requests there are. */
  readonly slots: number;
  /** Most segments of a request. */
  readonly sges: number;
  /** {@link slots} requests of `stride` words each. */
  protected readonly words: Uint32Array;
  readonly #segments: Uint32Array;
  readonly #stride: number;
  readonly #bytes: number;
  readonly #base: number;

  /** @internal */
  constructor(memory: Addresses, slots: number, sges: number, bytes: number) {
    for (const count of [slots, sges])
      if (!Number.isInteger(count) || count < 1 || count > 65536)
        throw invalid('requests', `${show(count)} is not a number of slots or segments between 1 and 65536`);
    this.slots = slots;
    this.sges = sges;
    this.words = new Uint32Array(new ArrayBuffer(slots * bytes));
    this.#segments = new Uint32Array(new ArrayBuffer(slots * sges * SGE.size));
    this.#bytes = bytes;
    this.#stride = bytes / 4;
    this.#base = memory.addressOf(this.words);
    const segments = memory.addressOf(this.#segments);
    for (let slot = 0; slot < slots; slot++) {
      put(this.words, slot * this.#stride + SEND_WR.sg_list / 4, segments + slot * sges * SGE.size);
      this.#link(slot);
    }
  }

  /** Sets the id that the completion of `slot` will have. */
  setId(slot: number, id: number): void {
    put(this.words, slot * this.#stride + SEND_WR.wr_id / 4, id);
  }

  /** Makes this segment the only memory of `slot`. `va` is an address as the region defines it (by its `iova`). */
  setLocal(slot: number, va: number, length: number, lkey: number): void {
    this.words[slot * this.#stride + SEND_WR.num_sge / 4] = 1;
    this.#segment(slot * this.sges, va, length, lkey);
  }

  /** Adds a segment to `slot`. EINVAL beyond {@link sges}. */
  addLocal(slot: number, va: number, length: number, lkey: number): void {
    const at = slot * this.#stride + SEND_WR.num_sge / 4;
    const before = this.words[at];
    if (before >= this.sges) throw invalid('addLocal', `a request has at most ${this.sges} segments`);
    this.words[at] = before + 1;
    this.#segment(slot * this.sges + before, va, length, lkey);
  }

  /** Removes the memory of `slot`: an empty message. */
  clearLocal(slot: number): void {
    this.words[slot * this.#stride + SEND_WR.num_sge / 4] = 0;
  }

  /** @internal For ports: the address of `slot`. */
  addressOf(slot: number): number {
    return this.#base + slot * this.#bytes;
  }

  /** @internal For ports: the slot at an address from {@link addressOf}. */
  slotAt(address: number): number {
    return (address - this.#base) / this.#bytes;
  }

  /** @internal For ports: makes `slot` the last of a chain, until {@link join}. */
  cut(slot: number): void {
    put(this.words, slot * this.#stride + SEND_WR.next / 4, 0);
  }

  /** @internal For ports: links `slot` to the next one again. */
  join(slot: number): void {
    this.#link(slot);
  }

  #link(slot: number): void {
    put(this.words, slot * this.#stride + SEND_WR.next / 4, this.addressOf(slot + 1 === this.slots ? 0 : slot + 1));
  }

  #segment(index: number, va: number, length: number, lkey: number): void {
    const segments = this.#segments;
    const at = (index * SGE.size) / 4;
    put(segments, at + SGE.addr / 4, va);
    segments[at + SGE.length / 4] = length;
    segments[at + SGE.lkey / 4] = lkey;
  }
}

/** Requests for receive queues. */
export class ReceiveRequests extends Requests {
  /**
   * @internal Room for requests, made once and used again.
   *
   * @param memory tells where arrays are
   * @param slots requests that can be posted at once
   * @param sges segments that each may have. Default 1.
   */
  constructor(memory: Addresses, slots: number, sges = 1) {
    super(memory, slots, sges, RECV_WR.size);
  }
}

/**
 * Requests for send queues. Set the memory ({@link setLocal}), the id ({@link setId}) and one of the operations below,
 * with `flags` of IBV_SEND_*; values that are not set again stay as they were.
 */
export class SendRequests extends Requests {
  /** The objects that each slot points to; they must be open when the slot is posted. */
  readonly #objects: (readonly Target[])[];

  /**
   * @internal Room for requests, made once and used again.
   *
   * @param memory tells where arrays are
   * @param slots requests that can be posted at once
   * @param sges segments that each may have. Default 1.
   */
  constructor(memory: Addresses, slots: number, sges = 1) {
    super(memory, slots, sges, SEND_WR.size);
    this.#objects = new Array<readonly Target[]>(slots).fill(NOTHING);
  }

  /** RDMA write: local memory to the peer's memory. */
  write(slot: number, remote: number, rkey: number, flags: number): void {
    this.#oneSided(slot, abi.IBV_WR_RDMA_WRITE, remote, rkey, flags);
  }

  /** RDMA write that also consumes a receive request of the peer and passes it 32 bits. */
  writeWithImmediate(slot: number, remote: number, rkey: number, immediate: number, flags: number): void {
    this.#oneSided(slot, abi.IBV_WR_RDMA_WRITE_WITH_IMM, remote, rkey, flags);
    this.words[slot * WORDS + SEND_WR.imm_data / 4] = swap(immediate);
  }

  /** RDMA read: the peer's memory to local memory. */
  read(slot: number, remote: number, rkey: number, flags: number): void {
    this.#oneSided(slot, abi.IBV_WR_RDMA_READ, remote, rkey, flags);
  }

  /** Send: the other side takes it by a receive that it has posted. */
  send(slot: number, flags: number): void {
    this.#verb(slot, abi.IBV_WR_SEND, flags);
  }

  /** As `send`, with 32 bits that come with the completion of the receive. */
  sendWithImmediate(slot: number, immediate: number, flags: number): void {
    this.#verb(slot, abi.IBV_WR_SEND_WITH_IMM, flags);
    this.words[slot * WORDS + SEND_WR.imm_data / 4] = swap(immediate);
  }

  /** A send that also invalidates `rkey`, a type 2 window of the receiver. */
  sendWithInvalidate(slot: number, rkey: number, flags: number): void {
    this.#verb(slot, abi.IBV_WR_SEND_WITH_INV, flags);
    this.words[slot * WORDS + SEND_WR.invalidate_rkey / 4] = rkey;
  }

  /** Invalidates `rkey`, a local type 2 window. */
  invalidate(slot: number, rkey: number, flags: number): void {
    this.#verb(slot, abi.IBV_WR_LOCAL_INV, flags);
    this.words[slot * WORDS + SEND_WR.invalidate_rkey / 4] = rkey;
  }

  /**
   * If the 8 bytes at `remote`, a multiple of 8, equal `compare`, sets them to `exchange`; the old value is written to
   * local memory. A Number is a safe integer, two's complement if negative; a BigInt is taken modulo 2^64.
   */
  compareAndSwap(
    slot: number,
    remote: number,
    rkey: number,
    compare: number | bigint,
    exchange: number | bigint,
    flags: number,
  ): void {
    this.#atomic(slot, abi.IBV_WR_ATOMIC_CMP_AND_SWP, remote, rkey, flags);
    putWhole(this.words, slot * WORDS + SEND_WR['wr.atomic.compare_add'] / 4, compare);
    putWhole(this.words, slot * WORDS + SEND_WR['wr.atomic.swap'] / 4, exchange);
  }

  /** Adds `add` to the 8 bytes at `remote`; otherwise like {@link compareAndSwap}. */
  fetchAndAdd(slot: number, remote: number, rkey: number, add: number | bigint, flags: number): void {
    this.#atomic(slot, abi.IBV_WR_ATOMIC_FETCH_AND_ADD, remote, rkey, flags);
    putWhole(this.words, slot * WORDS + SEND_WR['wr.atomic.compare_add'] / 4, add);
  }

  /** @internal The destination of `slot`, a datagram send. Call it after {@link send} or {@link sendWithImmediate}. */
  setDestination(slot: number, ah: VerbsAh, qpNumber: number, qkey: number): void {
    const { words } = this;
    const at = slot * WORDS;
    put(words, at + SEND_WR['wr.ud.ah'] / 4, ah.address);
    words[at + SEND_WR['wr.ud.remote_qpn'] / 4] = qpNumber;
    words[at + SEND_WR['wr.ud.remote_qkey'] / 4] = qkey;
    this.#objects[slot] = [ah];
  }

  /**
   * @internal Binds a type 2 window to [va, va + length) of `mr`.
   *
   * @param rkey the new key: the window's with different low 8 bits
   * @param access IBV_ACCESS_REMOTE_*, IBV_ACCESS_ZERO_BASED
   */
  bindWindow(
    slot: number,
    mw: VerbsMw,
    rkey: number,
    mr: VerbsMr,
    va: number,
    length: number,
    access: number,
    flags: number,
  ): void {
    this.#verb(slot, abi.IBV_WR_BIND_MW, flags);
    const { words } = this;
    const at = slot * WORDS;
    put(words, at + SEND_WR['bind_mw.mw'] / 4, mw.address);
    words[at + SEND_WR['bind_mw.rkey'] / 4] = rkey;
    put(words, at + SEND_WR['bind_mw.bind_info.mr'] / 4, mr.address);
    put(words, at + SEND_WR['bind_mw.bind_info.addr'] / 4, va);
    put(words, at + SEND_WR['bind_mw.bind_info.length'] / 4, length);
    words[at + SEND_WR['bind_mw.bind_info.mw_access_flags'] / 4] = access;
    this.#objects[slot] = [mw, mr];
  }

  /**
   * @internal For ports: can `slot` be posted to a queue pair of `pd`? All objects it points to must be open and in that domain.
   */
  isSound(slot: number, pd: VerbsPd, datagram: boolean): boolean {
    const objects = this.#objects[slot];
    // A datagram queue pair would follow the pointer of a destination that was never set.
    if (objects === NOTHING) return !datagram;
    if (datagram && objects.length !== 1) return false;
    return objects.every((each) => each.address !== 0 && each.pd === pd);
  }

  #verb(slot: number, opcode: number, flags: number): void {
    const { words } = this;
    const at = slot * WORDS;
    words[at + SEND_WR.opcode / 4] = opcode;
    words[at + SEND_WR.send_flags / 4] = flags;
    if (this.#objects[slot] !== NOTHING) this.#objects[slot] = NOTHING;
  }

  #oneSided(slot: number, opcode: number, remote: number, rkey: number, flags: number): void {
    this.#verb(slot, opcode, flags);
    put(this.words, slot * WORDS + SEND_WR['wr.rdma.remote_addr'] / 4, remote);
    this.words[slot * WORDS + SEND_WR['wr.rdma.rkey'] / 4] = rkey;
  }

  #atomic(slot: number, opcode: number, remote: number, rkey: number, flags: number): void {
    this.#verb(slot, opcode, flags);
    put(this.words, slot * WORDS + SEND_WR['wr.atomic.remote_addr'] / 4, remote);
    this.words[slot * WORDS + SEND_WR['wr.atomic.rkey'] / 4] = rkey;
  }
}

/** Memory for completions, which `VerbsPort.pollCq` fills from slot 0 on. A slot is valid until the next poll. */
export class Completions {
  /** @internal */
  readonly stays = STAYS;
  /** Most completions of one poll. */
  readonly slots: number;
  /** @internal For ports: the address of slot 0. */
  readonly address: number;
  readonly #words: Uint32Array;

  /**
   * @internal Room for completions, made once and used again.
   *
   * @param memory tells where arrays are
   * @param slots most completions of one poll, 1 to 65536
   */
  constructor(memory: Addresses, slots: number) {
    if (!Number.isInteger(slots) || slots < 1 || slots > 65536)
      throw invalid('completions', `${slots} is not a number of slots between 1 and 65536`);
    this.slots = slots;
    this.#words = new Uint32Array(new ArrayBuffer(slots * WC.size));
    this.address = memory.addressOf(this.#words);
  }

  /** The id of the request. */
  id(slot: number): number {
    const at = slot * WC_WORDS + WC.wr_id / 4;
    return this.#words[at] + this.#words[at + 1] * 4294967296;
  }

  /** IBV_WC_SUCCESS, or the error; on error only {@link id}, {@link qpNumber} and {@link vendorError} are valid. */
  status(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.status / 4];
  }

  /** The operation: IBV_WC_RECV and others. */
  opcode(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.opcode / 4];
  }

  /** The vendor's own number of an error; 0 when there was none. */
  vendorError(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.vendor_err / 4];
  }

  /** Bytes received, for receives and reads; datagrams include the 40 bytes of the global route header. */
  byteLength(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.byte_len / 4];
  }

  /** The 32 bits of immediate data, if {@link flags} has IBV_WC_WITH_IMM. */
  immediate(slot: number): number {
    return swap(this.#words[slot * WC_WORDS + WC.imm_data / 4]);
  }

  /** The invalidated key, if {@link flags} has IBV_WC_WITH_INV. */
  invalidated(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.invalidated_rkey / 4];
  }

  /** The number of the local queue pair. */
  qpNumber(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.qp_num / 4];
  }

  /** The number of the queue pair that sent a datagram. */
  sourceQp(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.src_qp / 4];
  }

  /** IBV_WC_GRH, IBV_WC_WITH_IMM, IBV_WC_WITH_INV */
  flags(slot: number): number {
    return this.#words[slot * WC_WORDS + WC.wc_flags / 4];
  }
}

/** The name of a completion's status without `IBV_WC_`, such as `REM_ACCESS_ERR`. */
export function completionStatusName(status: number): string {
  return STATUS_NAMES[status] ?? `status ${status}`;
}

const NOTHING: readonly Target[] = [];
const WORDS = SEND_WR.size / 4;
const WC_WORDS = WC.size / 4;

const STATUS_NAMES: readonly string[] = abi.WC_STATUSES;

/** Stores 64 bits as two words, little-endian. */
function put(words: Uint32Array, at: number, value: number): void {
  words[at] = value >>> 0;
  words[at + 1] = value / 4294967296;
}

/** Stores any 64-bit integer. */
function putWhole(words: Uint32Array, at: number, value: number | bigint): void {
  if (typeof value === 'bigint') {
    words[at] = Number(value & 0xffffffffn);
    words[at + 1] = Number((value >> 32n) & 0xffffffffn);
  } else {
    words[at] = value >>> 0;
    words[at + 1] = Math.floor(value / 4294967296);
  }
}

/** Converts 32 bits between this machine's order, little-endian, and network order. */
function swap(value: number): number {
  return (((value & 0xff) << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)) >>> 0;
}
