/**
 * An Intel 82574L that behaves as its data sheet says, and otherwise where a test asks for it. It writes down what a driver must not do:
 * a tail that passes the head, descriptors that are not clean, buffers that it has already, memory that it can not reach, frames that are too short.
 */
import { checksum, sumOf } from '../../../src/net/checksum.js';
import {
  ETHERNET,
  ETHER_TYPE,
  IPV4,
  IPV6,
  newShape,
  PROTOCOL,
  putU16,
  readShape,
  TAG,
  u16,
  UDP,
} from '../../../src/net/frames.js';
import {
  BAR_BYTES,
  BUFFER_SIZES,
  CAUSE,
  CTRL,
  CTRL_EXT,
  DESCRIPTOR_BYTES,
  EECD_AUTO_READ,
  EEPROM_SUM,
  EEPROM_WORDS,
  EERD,
  IVAR,
  MDIC,
  MRQC,
  PHY_CONTROL,
  RAH_VALID,
  RCTL,
  REG,
  RETA_ENTRIES,
  RETA_QUEUE_SHIFT,
  RFCTL,
  RX,
  RX_QUEUE,
  RXCSUM,
  STATISTICS,
  STATUS,
  TARC,
  TCTL,
  TX,
  TX_QUEUE,
  TXDCTL_COUNT,
} from '../../../src/drivers/e1000e/registers.js';
import type { DeviceModel, InterruptCounts, ModelHost } from '../../../src/vfio-user/devices/model.js';
import { loadWord, storeWord } from '../../../src/vfio-user/devices/words.js';

const MAC = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const QUEUES = [0, 1];
const CRC = 4;
const LEAST = 60;
const PAGE = 4096;
/** Bytes of a frame with its check sum that is not long: 4 more with a tag. */
const USUAL = 1518;
const SIZE_BITS = RCTL.SIZE_TIMES_16 | (3 << RCTL.SIZE_SHIFT);
const COUNTERS: readonly number[] = Object.values(STATISTICS);

/** What is wrong with a frame that is received. */
export interface Wrong {
  /** The length that the last descriptor tells. */
  readonly length?: number;
  /** The last descriptor does not say that it is the last. */
  readonly noEnd?: boolean;
  /** Behind the frame comes a descriptor of 0 bytes, the last. */
  readonly emptyEnd?: boolean;
  /** Errors in the status of the last. */
  readonly errors?: number;
  /** Everything is written but that the descriptors are done: {@link FakeE1000e.finish} writes that. */
  readonly unfinished?: boolean;
}

interface Context {
  readonly ip: number;
  readonly ipSum: number;
  readonly ipEnd: number;
  readonly l4: number;
  readonly l4Sum: number;
}

/** The adapter. */
export class FakeE1000e implements DeviceModel {
  readonly name = 'e1000e';
  readonly identity = {
    ...{ vendor: 0x8086, device: 0x10d3, subsystemVendor: 0x8086, subsystem: 0 },
    ...{ revision: 0, classCode: 0x020000 },
  };
  readonly regions = [{ index: 0, size: BAR_BYTES }];
  readonly interrupts: InterruptCounts;
  /** What a driver did that it must not do. */
  readonly violations: string[] = [];
  /** Frames that were sent, without check sums. */
  readonly sent: Uint8Array[] = [];
  /** Legacy descriptors of frames that were sent. */
  legacySent = 0;
  /** Stores to tails. */
  doorbells = 0;
  resets = 0;
  /** Interrupts, by vector. */
  readonly raised: number[] = [];
  /** Sends only what {@link step} says. */
  holds = false;
  /** It is unplugged: registers read as all ones. */
  gone = false;
  /** It is unplugged after so many accesses to its registers. */
  accessesLeft = Infinity;
  /** So many loads of STATUS after it was told to end, transfers still run: each writes a frame to a receive buffer. */
  lateLoads = 0;
  /** It never says that transfers have ended, or that the reset is over. */
  neverEnds = false;
  neverResets = false;
  /** What a hot reset leaves in RAL and RAH. */
  address: readonly number[] = MAC;
  readonly eeprom = eepromOf(MAC);
  /** Register 0 of the PHY. */
  phyControl: number = PHY_CONTROL.AUTONEGOTIATE;
  phyFails = false;
  readonly #host: ModelHost;
  readonly #words = new Uint32Array(BAR_BYTES / 4);
  #link = { up: true, speed: 2, full: true };
  readonly #contexts: (Context | undefined)[] = [undefined, undefined];
  /** Addresses of the buffers that it has. */
  readonly #buffers = new Set<number>();
  readonly #unfinished: { readonly iova: number; readonly status: number }[] = [];
  readonly #shape = newShape();

  constructor(host: ModelHost, interrupts: InterruptCounts = { intx: 1, msi: 1, msix: 5 }) {
    this.#host = host;
    this.interrupts = interrupts;
    this.reset();
  }

  // --- registers ---

  read(_region: number, offset: number, into: Uint8Array): void {
    if (into.length !== 4) this.violations.push(`a load of ${into.length} bytes`);
    this.#count();
    storeWord(into, 0, this.gone ? 0xffffffff : this.#load(offset));
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    if (from.length !== 4) this.violations.push(`a store of ${from.length} bytes`);
    this.#count();
    if (!this.gone) this.#store(offset, loadWord(from, 0));
  }

  #count(): void {
    if (this.accessesLeft === 0) this.gone = true;
    else this.accessesLeft--;
  }

  /** The value of a register, without the effects of a load. */
  peek(offset: number): number {
    return this.#words[offset / 4];
  }

  /** Sets a register, without the effects of a store. */
  poke(offset: number, value: number): void {
    this.#words[offset / 4] = value;
  }

  #load(offset: number): number {
    const value = this.peek(offset);
    if (offset === REG.STATUS) return this.#status();
    if (offset === REG.ICR) this.poke(REG.ICR, 0);
    if (COUNTERS.includes(offset)) this.poke(offset, 0);
    return value;
  }

  #status(): number {
    const { up, speed, full } = this.#link;
    const isEnding = (this.peek(REG.CTRL) & CTRL.MASTER_DISABLE) !== 0;
    const runs = !isEnding || this.neverEnds || this.lateLoads > 0;
    if (isEnding && this.lateLoads > 0) {
      this.lateLoads--;
      this.#deliver(0, new Uint8Array(64).fill(0xee), {});
    }
    return (
      (up ? STATUS.LINK_UP | (speed << STATUS.SPEED_SHIFT) : 0) |
      (full ? STATUS.FULL_DUPLEX : 0) |
      (runs ? STATUS.MASTER_ENABLE : 0)
    );
  }

  #store(offset: number, value: number): void {
    switch (offset) {
      case REG.CTRL:
        if ((value & CTRL.RESET) !== 0 && !this.neverResets) this.#resetMac();
        else this.poke(offset, value);
        return;
      case REG.RCTL: {
        // As an 82574 may not come back from that.
        const isEnding = (this.peek(REG.CTRL) & CTRL.MASTER_DISABLE) !== 0;
        if ((this.peek(offset) & ~value & RCTL.ENABLE) !== 0 && !isEnding)
          this.violations.push('the receiver is switched off in the middle of a frame');
        return this.poke(offset, value);
      }
      case REG.CTRL_EXT:
        return this.poke(offset, value & ~CTRL_EXT.EEPROM_RESET);
      case REG.STATUS:
        return;
      case REG.ICR:
        return this.poke(REG.ICR, this.peek(REG.ICR) & ~value);
      case REG.IMS:
        this.poke(REG.IMS, this.peek(REG.IMS) | value);
        return this.#interrupt(this.peek(REG.ICR));
      case REG.IMC:
        return this.poke(REG.IMS, this.peek(REG.IMS) & ~value);
      case REG.EERD:
        return this.poke(
          offset,
          ((this.eeprom[(value >>> EERD.ADDRESS_SHIFT) & 0x3fff] ?? 0) << EERD.DATA_SHIFT) | EERD.DONE,
        );
      case REG.MDIC:
        return this.#storePhy(value);
      default:
        this.#storeQueue(offset, value);
    }
  }

  #storePhy(value: number): void {
    const isWrite = (value & MDIC.WRITE) !== 0;
    if (isWrite) this.phyControl = value & 0xffff & ~PHY_CONTROL.RESTART;
    this.poke(REG.MDIC, (this.phyFails ? MDIC.ERROR : 0) | MDIC.READY | this.phyControl);
  }

  #storeQueue(offset: number, value: number): void {
    const before = this.peek(offset);
    this.poke(offset, value);
    for (const queue of QUEUES) {
      if (offset === RX_QUEUE.TAIL + queue * RX_QUEUE.STEP) this.#storeRxTail(queue, before, value);
      if (offset === TX_QUEUE.TAIL + queue * TX_QUEUE.STEP) this.#storeTxTail(queue, before, value);
    }
  }

  // --- reset ---

  reset(): void {
    this.#resetMac();
  }

  #resetMac(): void {
    this.resets++;
    this.#words.fill(0);
    this.#buffers.clear();
    this.#unfinished.length = 0;
    this.poke(REG.EECD, EECD_AUTO_READ);
    const [a, b, c, d, e, f] = this.address;
    this.poke(REG.RAL, a | (b << 8) | (c << 16) | (d << 24));
    this.poke(REG.RAH, e | (f << 8) | RAH_VALID);
    // What other systems leave there.
    for (const queue of QUEUES) this.poke(TX_QUEUE.ARBITRATION + queue * TX_QUEUE.STEP, 3 | TARC.ENABLE);
  }

  quiesce(): undefined {
    return undefined;
  }

  resume(): void {
    // Nothing runs by itself.
  }

  // --- link and interrupts ---

  setLink(up: boolean, speed = 2, full = true): void {
    this.#link = { up, speed, full };
    this.#raise(CAUSE.LINK | CAUSE.OTHER);
    if (up && !this.holds) this.step();
  }

  #raise(causes: number): void {
    this.poke(REG.ICR, this.peek(REG.ICR) | causes);
    this.#interrupt(causes);
  }

  #interrupt(causes: number): void {
    const raised = causes & this.peek(REG.IMS);
    if (raised === 0) return;
    if (this.interrupts.msix === 0) return this.#signal(0);
    const ivar = this.peek(REG.IVAR);
    for (const [cause, shift] of [
      [CAUSE.RX_QUEUE, IVAR.RX0_SHIFT],
      [CAUSE.RX_QUEUE << 1, IVAR.RX1_SHIFT],
      [CAUSE.OTHER, IVAR.OTHER_SHIFT],
    ] as const) {
      const field = (ivar >>> shift) & 0xf;
      if ((raised & cause) === 0 || (field & IVAR.VALID) === 0) continue;
      this.#signal(field & 7);
      this.poke(REG.ICR, this.peek(REG.ICR) & ~(cause & this.peek(REG.EIAC)));
    }
  }

  #signal(vector: number): void {
    this.raised.push(vector);
    this.#host.interrupt(vector);
  }

  /** Counts as if it had happened `by` times. */
  count(register: number, by = 1): void {
    this.poke(register, Math.min(0xffffffff, this.peek(register) + by));
  }

  // --- receive ---

  #storeRxTail(queue: number, before: number, tail: number): void {
    this.doorbells++;
    const size = this.#sizeOf(RX_QUEUE, queue);
    if (size === 0 || tail === before) return;
    if (tail >= size) return void this.violations.push(`receive tail ${tail} of ${size}`);
    const given = (tail - before + size) % size;
    const had = (before - this.#headOf(RX_QUEUE, queue) + size) % size;
    if (had + given > size - 1) this.violations.push(`the receive tail ${before} to ${tail} passes the head`);
    for (let i = 0; i < given; i++) {
      const words = this.#descriptor(RX_QUEUE, queue, (before + i) % size);
      if ((words[2] | words[3]) !== 0) this.violations.push(`a receive descriptor with ${words[2]}, ${words[3]}`);
      const iova = words[0] + words[1] * 2 ** 32;
      if (this.#buffers.has(iova)) this.violations.push(`the buffer ${iova} twice`);
      this.#buffers.add(iova);
    }
  }

  get bufferBytes(): number {
    const bits = this.peek(REG.RCTL) & SIZE_BITS;
    return BUFFER_SIZES.find(([, each]) => each === bits)?.[0] ?? 0;
  }

  /**
   * A frame comes, without its check sum.
   *
   * @returns the queue that it was put into; -1 if it was not
   */
  receive(frame: Uint8Array, wrong: Wrong = {}): number {
    const rctl = this.peek(REG.RCTL);
    if (this.gone || !this.#link.up || (rctl & RCTL.ENABLE) === 0 || !this.#isForIt(frame, rctl)) return -1;
    const isTagged = frame.length >= ETHERNET.BYTES && u16(frame, ETHERNET.TYPE) === ETHER_TYPE.VLAN;
    if ((rctl & RCTL.LONG) === 0 && frame.length + CRC > USUAL + (isTagged ? TAG : 0)) {
      this.count(STATISTICS.OVERSIZE);
      return -1;
    }
    if (frame.length < LEAST) {
      this.count(STATISTICS.UNDERSIZE);
      return -1;
    }
    const hash = this.#hashOf(frame);
    const entry = this.#byte(REG.RETA + (hash.value % RETA_ENTRIES));
    const queue = (this.peek(REG.MRQC) & MRQC.RSS) !== 0 && hash.type !== 0 ? entry >>> RETA_QUEUE_SHIFT : 0;
    return this.#deliver(queue, frame, wrong) ? queue : -1;
  }

  #isForIt(frame: Uint8Array, rctl: number): boolean {
    const isGroup = (frame[0] & 1) !== 0;
    if (isGroup && (rctl & RCTL.MULTICAST_PROMISCUOUS) !== 0) return true;
    if (frame.subarray(0, 6).every((byte) => byte === 0xff)) return (rctl & RCTL.BROADCAST) !== 0;
    if (isGroup) return false;
    if ((rctl & RCTL.UNICAST_PROMISCUOUS) !== 0) return true;
    const [low, high] = [this.peek(REG.RAL), this.peek(REG.RAH)];
    const own = [low, low >>> 8, low >>> 16, low >>> 24, high, high >>> 8];
    return own.every((byte, i) => (byte & 0xff) === frame[i]);
  }

  #deliver(queue: number, frame: Uint8Array, wrong: Wrong): boolean {
    const size = this.#sizeOf(RX_QUEUE, queue);
    const buffer = this.bufferBytes;
    const { bytes, status: found, tag } = this.#strip(frame);
    const pieces = Math.max(1, Math.ceil(bytes.length / buffer)) + (wrong.emptyEnd === true ? 1 : 0);
    const head = this.#headOf(RX_QUEUE, queue);
    const has = size === 0 ? 0 : (this.peek(RX_QUEUE.TAIL + queue * RX_QUEUE.STEP) - head + size) % size;
    if (pieces > has) {
      this.count(STATISTICS.MISSED);
      return false;
    }
    const hash = this.#hashOf(frame);
    for (let i = 0; i < pieces; i++) {
      const at = (head + i) % size;
      const words = this.#descriptor(RX_QUEUE, queue, at);
      const iova = words[0] + words[1] * 2 ** 32;
      const part = bytes.subarray(i * buffer, (i + 1) * buffer);
      this.#buffers.delete(iova);
      if (part.length > 0) this.#reach(() => this.#host.dma.write(iova, part));
      const isLast = i === pieces - 1;
      const length = isLast ? (wrong.length ?? part.length) : part.length;
      const end = isLast && wrong.noEnd !== true ? RX.END | found | (wrong.errors ?? 0) : 0;
      const hasHash = (this.peek(REG.RXCSUM) & RXCSUM.HASH) !== 0;
      const back = new Uint8Array(DESCRIPTOR_BYTES);
      const isExtended = (this.peek(REG.RFCTL) & RFCTL.EXTENDED) !== 0;
      let status = end | RX.DONE;
      const upper = isLast ? tag << 16 : 0;
      if (isExtended) {
        storeWord(back, 0, (hasHash ? hash.type : 0) | (queue << 8));
        storeWord(back, 4, hasHash ? hash.value : 0);
        storeWord(back, 12, length | upper);
      } else {
        status = upper | ((status >>> 16) & 0xff00) | (status & 0xff);
        for (let word = 0; word < 2; word++) storeWord(back, 4 * word, words[word]);
        storeWord(back, 8, length);
      }
      const statusAt = isExtended ? 8 : 12;
      storeWord(back, statusAt, wrong.unfinished === true ? status & ~RX.DONE : status);
      const where = this.#addressOf(RX_QUEUE, queue, at);
      this.#reach(() => this.#host.dma.write(where, back));
      if (wrong.unfinished === true) this.#unfinished.push({ iova: where + statusAt, status });
    }
    this.poke(RX_QUEUE.HEAD + queue * RX_QUEUE.STEP, (head + pieces) % size);
    if ((this.peek(REG.RFCTL) & RFCTL.EXTENDED) === 0 && queue !== 0)
      this.violations.push('a second queue without extended descriptors');
    if (wrong.unfinished !== true) this.#raise((CAUSE.RX_QUEUE << queue) | CAUSE.RX_TIMER);
    return true;
  }

  /** Descriptors that were left unfinished are done. */
  finish(): void {
    for (const { iova, status } of this.#unfinished.splice(0)) {
      const word = new Uint8Array(4);
      storeWord(word, 0, status);
      this.#reach(() => this.#host.dma.write(iova, word));
    }
  }

  /** Takes the tag away if it is to do that, and looks at the check sums. */
  #strip(frame: Uint8Array): { readonly bytes: Uint8Array; readonly status: number; readonly tag: number } {
    let status = this.#checked(frame);
    const isTagged = frame.length >= ETHERNET.BYTES + TAG && u16(frame, ETHERNET.TYPE) === ETHER_TYPE.VLAN;
    if (!isTagged || (this.peek(REG.CTRL) & CTRL.VLAN_MODE) === 0) return { bytes: frame, status, tag: 0 };
    status |= RX.VLAN;
    const bytes = new Uint8Array(frame.length - TAG);
    bytes.set(frame.subarray(0, ETHERNET.TYPE));
    bytes.set(frame.subarray(ETHERNET.TYPE + TAG), ETHERNET.TYPE);
    return { bytes, status, tag: u16(frame, ETHERNET.TYPE + 2) };
  }

  #checked(frame: Uint8Array): number {
    const wanted = this.peek(REG.RXCSUM);
    const shape = readShape(frame, 0, frame.length, this.#shape);
    let status = 0;
    if (shape.l3 === 0) return status;
    const isIpv4 = shape.type === ETHER_TYPE.IPV4;
    const ip = shape.l2;
    if ((wanted & RXCSUM.IP) !== 0 && isIpv4)
      status |= RX.IP_CHECKED | (checksum(sumOf(frame, ip, shape.l3)) === 0 ? 0 : RX.IP_ERROR);
    const isTcp = shape.protocol === PROTOCOL.TCP;
    if ((wanted & RXCSUM.L4) === 0 || shape.isFragment || (!isTcp && shape.protocol !== PROTOCOL.UDP)) return status;
    const from = isIpv4 ? IPV4.FROM : IPV6.FROM;
    const pseudo = sumOf(frame, ip + from, isIpv4 ? 8 : 32) + shape.protocol + shape.payload;
    const isRight = checksum(sumOf(frame, ip + shape.l3, shape.payload, pseudo)) === 0;
    return status | (isTcp ? RX.TCP_CHECKED : RX.UDP_CHECKED) | (isRight ? 0 : RX.L4_ERROR);
  }

  /** The hash of Toeplitz over addresses, and ports of TCP. */
  #hashOf(frame: Uint8Array): { readonly type: number; readonly value: number } {
    const shape = readShape(frame, 0, frame.length, this.#shape);
    if (shape.l3 === 0 || (this.peek(REG.MRQC) & MRQC.RSS) === 0) return { type: 0, value: 0 };
    const isIpv4 = shape.type === ETHER_TYPE.IPV4;
    const hasPorts = shape.protocol === PROTOCOL.TCP && !shape.isFragment;
    const start = shape.l2 + (isIpv4 ? IPV4.FROM : IPV6.FROM);
    const addresses = frame.subarray(start, start + (isIpv4 ? 8 : 32));
    const l4 = shape.l2 + shape.l3;
    const input = hasPorts ? [...addresses, ...frame.subarray(l4, l4 + 4)] : [...addresses];
    let value = 0;
    for (let bit = 0; bit < input.length * 8; bit++)
      if ((input[bit >> 3] & (0x80 >> (bit & 7))) !== 0) value ^= this.#keyAt(bit);
    return { type: (hasPorts ? 1 : 2) + (isIpv4 ? 0 : 2), value: value >>> 0 };
  }

  /** 32 bits of the key from bit `bit` on. */
  #keyAt(bit: number): number {
    let value = 0;
    for (let i = 0; i < 32; i++) {
      const at = bit + i;
      value = (value << 1) | ((this.#byte(REG.RSSRK + (at >> 3)) >> (7 - (at & 7))) & 1);
    }
    return value;
  }

  #byte(offset: number): number {
    return (this.peek(offset & ~3) >>> (8 * (offset & 3))) & 0xff;
  }

  // --- transmit ---

  #storeTxTail(queue: number, before: number, tail: number): void {
    this.doorbells++;
    const size = this.#sizeOf(TX_QUEUE, queue);
    if (size === 0 || tail === before) return;
    if (tail >= size) return void this.violations.push(`transmit tail ${tail} of ${size}`);
    const given = (tail - before + size) % size;
    const had = (before - this.#headOf(TX_QUEUE, queue) + size) % size;
    if (had + given > size - 1) this.violations.push(`the transmit tail ${before} to ${tail} passes the head`);
    if (!this.holds) this.step();
  }

  /** Sends up to `count` frames. @returns how many it sent */
  step(count = Infinity): number {
    let sent = 0;
    if (this.gone || !this.#link.up || (this.peek(REG.TCTL) & TCTL.ENABLE) === 0) return 0;
    for (const queue of QUEUES) {
      if ((this.peek(TX_QUEUE.ARBITRATION + queue * TX_QUEUE.STEP) & TARC.ENABLE) === 0) continue;
      while (sent < count && this.#sendOne(queue)) sent++;
    }
    return sent;
  }

  #sendOne(queue: number): boolean {
    const at = queue * TX_QUEUE.STEP;
    const size = this.#sizeOf(TX_QUEUE, queue);
    let head = this.#headOf(TX_QUEUE, queue);
    if (size === 0 || head === this.peek(TX_QUEUE.TAIL + at)) return false;
    if ((this.peek(TX_QUEUE.DCTL + at) & TXDCTL_COUNT) === 0) this.violations.push('TXDCTL has not its bit 22');
    const parts: Uint8Array[] = [];
    let hasContext = false;
    for (;;) {
      if (head === this.peek(TX_QUEUE.TAIL + at)) {
        this.violations.push('a frame without an end');
        return false;
      }
      const index = head;
      const words = this.#descriptor(TX_QUEUE, queue, index);
      head = (head + 1) % size;
      const command = words[2];
      const isExtended = (command & TX.EXTENDED) !== 0;
      if (!isExtended) this.legacySent++;
      if ((words[3] & TX.DONE) !== 0) this.violations.push('a descriptor that is done already');
      if (isExtended && (command & TX.DATA) === 0) {
        hasContext = true;
        this.#contexts[queue] = {
          ...{ ip: words[0] & 0xff, ipSum: (words[0] >>> 8) & 0xff, ipEnd: words[0] >>> 16 },
          ...{ l4: words[1] & 0xff, l4Sum: (words[1] >>> 8) & 0xff },
        };
        continue;
      }
      const part = new Uint8Array(command & (isExtended ? TX.LENGTH_MASK : 0xffff));
      // As QEMU's, which drops the frame if the pages are not side by side in memory.
      if ((words[0] % PAGE) + part.length > PAGE) this.violations.push('a descriptor of more than one page');
      if (part.length === 0) this.violations.push('a descriptor of 0 bytes');
      else this.#reach(() => this.#host.dma.read(words[0] + words[1] * 2 ** 32, part));
      parts.push(part);
      if ((command & TX.END) === 0) continue;
      this.#putOnWire(Buffer.concat(parts), words, hasContext ? this.#contexts[queue] : undefined);
      if ((command & TX.REPORT) !== 0) {
        const word = new Uint8Array(4);
        storeWord(word, 0, words[3] | TX.DONE);
        this.#reach(() => this.#host.dma.write(this.#addressOf(TX_QUEUE, queue, index) + 12, word));
      } else this.violations.push('a frame without a report');
      this.poke(TX_QUEUE.HEAD + at, head);
      return true;
    }
  }

  #putOnWire(data: Uint8Array, words: Uint32Array, context: Context | undefined): void {
    let frame = new Uint8Array(data);
    const options = words[3];
    if ((options & (TX.SUM_IP | TX.SUM_L4)) !== 0) {
      if (context === undefined) this.violations.push('sums without a context');
      else {
        // What is in the field counts, too: that of TCP has the sum of the pseudo header.
        if ((options & TX.SUM_IP) !== 0)
          putU16(frame, context.ipSum, checksum(sumOf(frame, context.ip, context.ipEnd + 1 - context.ip)));
        if ((options & TX.SUM_L4) !== 0) {
          const sum = checksum(sumOf(frame, context.l4, frame.length - context.l4));
          putU16(frame, context.l4Sum, context.l4Sum - context.l4 === UDP.SUM && sum === 0 ? 0xffff : sum);
        }
      }
    }
    if ((words[2] & TX.INSERT_VLAN) !== 0) {
      if ((this.peek(REG.CTRL) & CTRL.VLAN_MODE) === 0) this.violations.push('a tag is to be inserted without VME');
      const tagged = new Uint8Array(frame.length + TAG);
      tagged.set(frame.subarray(0, ETHERNET.TYPE));
      putU16(tagged, ETHERNET.TYPE, ETHER_TYPE.VLAN);
      putU16(tagged, ETHERNET.TYPE + 2, options >>> TX.VLAN_SHIFT);
      tagged.set(frame.subarray(ETHERNET.TYPE), ETHERNET.TYPE + TAG);
      frame = tagged;
    }
    if ((words[2] & TX.INSERT_CRC) === 0) this.violations.push('a frame without a check sum');
    // The adapter would pad it with what is in its memory.
    if (frame.length < LEAST) this.violations.push(`a frame of ${frame.length} bytes`);
    this.sent.push(frame);
  }

  // --- rings ---

  #sizeOf(kind: typeof RX_QUEUE | typeof TX_QUEUE, queue: number): number {
    return this.peek(kind.LEN + queue * kind.STEP) / DESCRIPTOR_BYTES;
  }

  #headOf(kind: typeof RX_QUEUE | typeof TX_QUEUE, queue: number): number {
    return this.peek(kind.HEAD + queue * kind.STEP);
  }

  #addressOf(kind: typeof RX_QUEUE | typeof TX_QUEUE, queue: number, index: number): number {
    const at = queue * kind.STEP;
    return this.peek(kind.BAL + at) + this.peek(kind.BAH + at) * 2 ** 32 + index * DESCRIPTOR_BYTES;
  }

  #descriptor(kind: typeof RX_QUEUE | typeof TX_QUEUE, queue: number, index: number): Uint32Array {
    const bytes = new Uint8Array(DESCRIPTOR_BYTES);
    this.#reach(() => this.#host.dma.read(this.#addressOf(kind, queue, index), bytes));
    return Uint32Array.from({ length: 4 }, (_, i) => loadWord(bytes, 4 * i));
  }

  #reach(access: () => unknown): void {
    try {
      access();
    } catch (error) {
      this.violations.push(error instanceof Error ? error.message : String(error));
    }
  }
}

/** An EEPROM with a station address, whose words add up as they have to. */
export function eepromOf(mac: readonly number[]): Uint16Array {
  const words = new Uint16Array(EEPROM_WORDS).fill(0x1234, 3);
  for (let i = 0; i < 3; i++) words[i] = mac[2 * i] | (mac[2 * i + 1] << 8);
  const sum = words.subarray(0, -1).reduce((all, word) => all + word, 0);
  words[EEPROM_WORDS - 1] = EEPROM_SUM - (sum & 0xffff);
  return words;
}
