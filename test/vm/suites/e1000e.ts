/** QEMU's e1000e through the driver of the library, with a cable whose other end echoes: frames of every length, from all kinds of memory. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import { MEMORY_KIND_NAMES, packetMemory } from '../../../src/cli/forward/packet-memory.js';
import { e1000eDriver, Forwarder, NONE, OFFLOAD, Packets, type Port, type PortEvent } from '../../../src/entry/net.js';
import { Eal, type Device } from '../../../src/index.js';
import { SoftwarePort } from '../../../src/drivers/ports/software-port.js';
import { checksum, sumOf } from '../../../src/net/checksum.js';
import { Random } from '../../shared/random.js';
import { until } from '../../shared/until.js';
import { bindToVfio, CHOICE, KIND, sysfs, WHOLE, width } from '../guest.js';
import { host } from '../host.js';
import { HOTPLUG } from '../machine.js';

const MAC = '52:54:00:82:57:4c';
const OWN = [0x52, 0x54, 0, 0x82, 0x57, 0x4c];
const PEER = [2, 0, 0, 0, 0, 9];
const LEAST = 60;
const MOST = 9014;
/** Frames of all kinds of memory together, in each of the runs: the whole by `npm run test:vm -- --whole --only built-48/e1000e/`. */
const FRAMES = WHOLE ? 1_000_000 : 25_000;
/** Frames that are under way at most: fewer than the sockets on the way have room for, so that nobody waits for the other. */
const WINDOW = 48;
/** Addresses and type, number, check sum. */
const HEADER = 14 + 4 + 4;
/** What frames are filled with, from a place that depends on their number. */
const NOISE = new Random(82_574).bytes(1 << 16);
/** How long a frame may be on its way, in milliseconds: then it is lost. */
const LOST_MS = 30_000;

let count = 0;
let nic = '';
let wire = '';

/** Puts an adapter with a cable into the machine, for the test that follows. */
async function plugIn(): Promise<void> {
  count++;
  [nic, wire] = [`nic${process.pid}-${count}`, `wire${process.pid}-${count}`];
  await host.wire(wire);
  await host.deviceAdd({ driver: 'e1000e', id: nic, bus: 'port0', netdev: wire, mac: MAC });
  await bindToVfio([HOTPLUG], { wait: true });
}

async function pullOut(): Promise<void> {
  await host.deviceDel(nic);
  await host.deviceGone(nic);
  await host.unwire(wire);
}

before(plugIn);
after(pullOut);

interface Room extends AsyncDisposable {
  readonly eal: Eal;
  readonly device: Device;
  readonly port: Port;
}

async function open(): Promise<Room> {
  const eal = await Eal.start({ iommu: CHOICE });
  try {
    const device = await eal.probe(`pci:${HOTPLUG}`);
    const port = device.use(e1000eDriver);
    // The kernel's driver has left the PHY switched off: its link comes some time after it was switched on.
    await until(() => port.link.up, 'the link is up');
    return { eal, device, port, [Symbol.asyncDispose]: () => eal.stop() };
  } catch (error) {
    await eal.stop();
    throw error;
  }
}

/** A frame with its number, and a sum over what follows. */
function writeFrame(into: Uint8Array, number: number): void {
  into.set([...PEER, ...OWN, 0x88, 0xb5]);
  const from = Math.imul(number, 7919) & 0x7fff;
  into.set(NOISE.subarray(from, from + into.length - HEADER), HEADER);
  const view = new DataView(into.buffer, into.byteOffset, into.length);
  view.setUint32(14, number);
  view.setUint32(18, crc32(into.subarray(HEADER)));
}

/** @returns the number of a frame that came back whole */
function numberOf(frame: Uint8Array): number {
  assert.deepEqual([...frame.subarray(0, 14)], [...OWN, ...PEER, 0x88, 0xb5]);
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  assert.equal(view.getUint32(18), crc32(frame.subarray(HEADER)), 'the frame was changed on its way');
  return view.getUint32(14);
}

/** Sends `frames` of random lengths, and takes what comes back, each once. */
async function exchange(port: Port, packets: Packets, frames: number, seed: number, most = MOST): Promise<void> {
  const random = new Random(seed);
  const lengths = new Uint16Array(frames);
  const back = new Uint8Array(frames);
  const scratch = new Uint8Array(MOST);
  const burst = new Int32Array(32);
  const waiting = new Int32Array(32);
  let [made, done, waits] = [0, 0, 0];
  let last = performance.now();
  while (done < frames) {
    while (waits < waiting.length && made < frames && made - done < WINDOW) {
      // Often the shortest, the longest, and what just fits a buffer.
      const length = random.oneIn(8)
        ? Math.min(most, random.pick([LEAST, LEAST + 1, 2048, 2049, 4096, MOST]))
        : LEAST + random.below(most - LEAST + 1);
      const bytes = scratch.subarray(0, length);
      writeFrame(bytes, made);
      const packet = packets.from(bytes);
      if (packet === NONE) break;
      lengths[made++] = length;
      waiting[waits++] = packet;
    }
    const sent = port.tx(0, waiting, waits);
    waiting.copyWithin(0, sent, waits);
    waits -= sent;
    const came = port.rx(0, burst);
    for (const packet of burst.subarray(0, came)) {
      const frame = packets.copy(packet);
      const number = numberOf(frame);
      assert.equal(frame.length, lengths[number]);
      assert.equal(back[number]++, 0, `frame ${number} came twice`);
      done++;
    }
    packets.release(burst, came);
    if (came > 0) last = performance.now();
    else {
      assert.ok(
        performance.now() - last < LOST_MS,
        `${made - done} of ${made} frames have not come back: ${JSON.stringify(port.statistics())}`,
      );
      await port.readable(0, { timeoutMs: 20 });
    }
  }
  assert.equal(port.rx(0, burst), 0);
}

test('it is there: address, link, interrupts, and the width of the IOMMU', async () => {
  await using room = await open();
  const { device, port } = room;
  assert.equal(device.domain?.kind, KIND);
  assert.equal(device.driver, e1000eDriver);
  assert.equal(port.mac, MAC);
  assert.deepEqual(port.link, { up: true, speed: 1000, fullDuplex: true });
  assert.equal(device.access.interruptCount('msix'), 5);
  assert.ok(device.domain?.constraints.windows.every(({ end }) => end <= 2 ** width()));
});

test('frames of 60 to 9,014 bytes go and come back whole, each once, from all kinds of memory', async (t) => {
  await using room = await open();
  const { eal, device, port } = room;
  const frames = Math.floor(FRAMES / MEMORY_KIND_NAMES.length);
  const before = await host.echoed(wire);
  for (const [i, kind] of MEMORY_KIND_NAMES.entries()) {
    const begun = performance.now();
    using memory = packetMemory(eal, kind, 2048, 2176);
    memory.map(device);
    const packets = new Packets(memory.pool);
    await port.start({ packets, maxFrame: MOST });
    await exchange(port, packets, frames, 14 + i);
    const { rxPackets, txPackets, rxErrors, txErrors, rxMissed } = port.statistics();
    assert.deepEqual([rxPackets, txPackets, rxErrors, txErrors, rxMissed], [frames, frames, 0, 0, 0], kind);
    port.resetStatistics();
    assert.throws(() => device.dmaUnmapAll(), /uses? this memory/, kind);
    await port.stop();
    assert.equal(memory.pool.available, 2048, kind);
    t.diagnostic(`${kind}: ${frames} frames in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  }
  assert.equal((await host.echoed(wire)) - before, frames * MEMORY_KIND_NAMES.length);
  assert.deepEqual(device.explainFaults(), []);
});

/** UDP over IPv4, with a tag or without; with right sums or none. */
function udp(tag: number, sums: boolean): Uint8Array {
  const data = Array.from({ length: 101 }, (_, i) => (i * 13) & 0xff);
  const length = 8 + data.length;
  const ether = [...PEER, ...OWN, ...(tag < 0 ? [] : [0x81, 0, tag >> 8, tag & 255]), 8, 0];
  const ip = [0x45, 0, 0, 20 + length, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
  const frame = Uint8Array.from([...ether, ...ip, 0x12, 0x34, 0x43, 0x21, 0, length, 0, 0, ...data]);
  const l3 = ether.length;
  const pseudo = sumOf(frame, l3 + 12, 8) + 17 + length;
  const l4Sum = sums ? checksum(sumOf(frame, l3 + 20, length, pseudo)) : ~checksum(pseudo) & 0xffff;
  frame.set([l4Sum >> 8, l4Sum & 255], l3 + 26);
  if (!sums) return frame;
  const ipSum = checksum(sumOf(frame, l3, 20));
  frame.set([ipSum >> 8, ipSum & 255], l3 + 10);
  return frame;
}

test('check sums and tags: computed, inserted, checked and stripped', async () => {
  await using room = await open();
  const { eal, port } = room;
  const pool = eal.pools.create({ elements: 512, elementSize: 2176 });
  const packets = new Packets(pool);
  const sums = OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_IP_BAD | OFFLOAD.RX_L4_GOOD | OFFLOAD.RX_L4_BAD;
  const burst = new Int32Array(4);
  for (const strips of [true, false])
    for (const tag of [-1, 0x2005]) {
      await port.start({ packets, offloads: strips ? sums | OFFLOAD.RX_VLAN_STRIPPED : 0 });
      const packet = packets.from(udp(-1, false));
      packets.flags[packet] = OFFLOAD.TX_IP | OFFLOAD.TX_UDP | (tag < 0 ? 0 : OFFLOAD.TX_VLAN);
      packets.l2[packet] = 14;
      packets.l3[packet] = 20;
      packets.vlan[packet] = tag;
      assert.equal(port.tx(0, Int32Array.of(packet)), 1);
      await port.readable(0);
      assert.equal(port.rx(0, burst), 1);
      const [came] = burst;
      const wanted = udp(strips ? -1 : tag, true);
      wanted.set([...OWN, ...PEER]);
      assert.deepEqual([...packets.copy(came)], [...wanted]);
      const good = OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_L4_GOOD | (tag < 0 ? 0 : OFFLOAD.RX_VLAN_STRIPPED);
      assert.equal(packets.flags[came], strips ? good : 0);
      if (strips && tag >= 0) assert.equal(packets.vlan[came], tag);
      packets.releaseOne(came);
      await port.stop();
    }
  pool.free();
});

/** TCP over IPv4, from a port of its own. */
function tcp(from: number): Uint8Array {
  const ip = [0x45, 0, 0, 60, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
  const header = [from >> 8, from & 255, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
  return Uint8Array.from([...PEER, ...OWN, 8, 0, ...ip, ...header, ...new Uint8Array(20).fill(from)]);
}

test('flows are spread over two queues, each whole in one, with their hash', async () => {
  await using room = await open();
  const { eal, port } = room;
  const pool = eal.pools.create({ elements: 2048, elementSize: 2176 });
  const packets = new Packets(pool);
  await port.start({ packets, rxQueues: 2, txQueues: 2, offloads: OFFLOAD.RX_HASH });
  const [flows, each] = [64, 4];
  const queueOf = new Map<number, number>();
  const burst = new Int32Array(32);
  for (let round = 0; round < each; round++) {
    for (let flow = 0; flow < flows; flow++)
      assert.equal(port.tx(flow & 1, Int32Array.of(packets.from(tcp(1000 + flow)))), 1);
    for (let left = flows; left > 0;) {
      for (const queue of [0, 1]) {
        const came = port.rx(queue, burst);
        for (const packet of burst.subarray(0, came)) {
          const frame = packets.copy(packet);
          const flow = ((frame[34] << 8) | frame[35]) - 1000;
          assert.equal(queueOf.get(flow) ?? queue, queue, `flow ${flow}`);
          queueOf.set(flow, queue);
          assert.equal(packets.flags[packet], OFFLOAD.RX_HASH);
          assert.equal(packets.hash[packet] & 1, queue, 'the table has both queues in turn');
        }
        packets.release(burst, came);
        left -= came;
      }
      await delay(1);
    }
  }
  const second = [...queueOf.values()].filter((queue) => queue === 1).length;
  assert.ok(queueOf.size === flows && second > 5 && second < flows - 5, `${second} of ${queueOf.size}`);
  await port.stop();
  assert.equal(pool.available, 2048);
  pool.free();
});

/** How many interrupts of a vector the kernel has given to VFIO. */
function interruptsOf(vector: number): number {
  const name = `vfio-msix[${vector}](${HOTPLUG})`;
  const line = readFileSync('/proc/interrupts', 'utf8')
    .split('\n')
    .find((each) => each.includes(name));
  assert.ok(line !== undefined, `${name} is not in /proc/interrupts`);
  return (/:((?: +\d+)+)/.exec(line)?.[1] ?? '')
    .trim()
    .split(/ +/)
    .reduce((sum, each) => sum + Number(each), 0);
}

test('who waits is woken by MSI-X; who polls is not interrupted', async () => {
  await using room = await open();
  const { eal, port } = room;
  const pool = eal.pools.create({ elements: 1024, elementSize: 2176 });
  const packets = new Packets(pool);
  await port.start({ packets });
  const burst = new Int32Array(32);
  const echo = async (wait: () => Promise<void>): Promise<void> => {
    const bytes = new Uint8Array(64);
    writeFrame(bytes, 7);
    assert.equal(port.tx(0, Int32Array.of(packets.from(bytes))), 1);
    let came = 0;
    while ((came = port.rx(0, burst)) === 0) await wait();
    packets.release(burst, came);
  };
  const before = interruptsOf(0);
  for (let i = 0; i < 20; i++) await echo(() => delay(1));
  assert.equal(interruptsOf(0), before, 'it polls');
  for (let i = 0; i < 200 && interruptsOf(0) < before + 10; i++) await echo(() => port.readable(0));
  assert.ok(interruptsOf(0) >= before + 10, `${interruptsOf(0) - before} interrupts`);
  await port.stop();
  pool.free();
});

test('the link goes and comes; starting and stopping again and again loses no element', async () => {
  await using room = await open();
  const { eal, device, port } = room;
  const pool = eal.pools.create({ elements: 1024, elementSize: 2176 });
  const packets = new Packets(pool);
  const events = port.events();
  const next = async (): Promise<PortEvent> => {
    const result = await events.next();
    assert.ok(result.done !== true);
    return result.value;
  };
  await port.start({ packets });
  const alive = setInterval(() => undefined, 1000);
  for (const up of [false, true]) {
    await host.qmp('set_link', { name: nic, up });
    const event = await next();
    assert.ok(event.kind === 'link' && event.link.up === up, JSON.stringify(event));
  }
  clearInterval(alive);
  await exchange(port, packets, 100, 1, 1514);
  for (let round = 0; round < 10; round++) {
    // Frames are under way in both directions.
    for (let i = 0; i < 20; i++) {
      const bytes = new Uint8Array(1514);
      writeFrame(bytes, i);
      const packet = packets.from(bytes);
      if (port.tx(0, Int32Array.of(packet)) === 0) packets.releaseOne(packet);
    }
    await port.stop();
    assert.equal(pool.available, 1024);
    await port.start({ packets });
  }
  await port.stop();
  pool.free();
  assert.deepEqual(device.explainFaults(), []);
});

test('a program that is killed while it sends leaves an adapter that works', async (t) => {
  const command = [
    'dist/src/cli/main.js',
    'forward',
    '--iommu',
    CHOICE,
    '--port',
    `pci:${HOTPLUG}`,
    '--mode',
    'txonly',
  ];
  const before = await host.echoed(wire);
  const begun = performance.now();
  const child = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  // The command takes its time to start on a busy machine.
  await until(async () => (await host.echoed(wire)) > before + 100, 'it sends', 400_000);
  t.diagnostic(`it sends after ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  child.kill('SIGKILL');
  await once(child, 'exit');
  const isMaster = (): boolean => (readFileSync(`${sysfs(HOTPLUG)}/config`)[4] & 4) !== 0;
  await until(() => !isMaster(), 'it is no bus master any more');
  let [sent, last] = [await host.echoed(wire), -1];
  await until(async () => {
    await delay(300);
    [last, sent] = [sent, await host.echoed(wire)];
    return sent === last;
  }, 'it sends no more');
  await using room = await open();
  t.diagnostic(`the next program has it after ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  const { eal, port } = room;
  const pool = eal.pools.create({ elements: 1024, elementSize: 2176 });
  const packets = new Packets(pool);
  await port.start({ packets, maxFrame: MOST });
  // What was on its way to the other program may still come.
  const burst = new Int32Array(64);
  for (let quiet = 0; quiet < 10; quiet++) {
    await delay(100);
    for (let came = port.rx(0, burst); came > 0; came = port.rx(0, burst)) {
      packets.release(burst, came);
      quiet = 0;
    }
  }
  await exchange(port, packets, 500, 2);
  await port.stop();
  assert.equal(pool.available, 1024);
  pool.free();
});

test('an adapter that is unplugged under load is lost, and gives everything back', async () => {
  await using room = await open();
  const { eal, port } = room;
  const pool = eal.pools.create({ elements: 1024, elementSize: 2176 });
  const packets = new Packets(pool);
  await port.start({ packets, maxFrame: MOST });
  const alive = setInterval(() => undefined, 1000);
  const lost = once(eal.events, 'lost');
  const busy = exchange(port, packets, 1_000_000, 3).catch((error: unknown) => error);
  await until(async () => (await host.echoed(wire)) > 100, 'frames go to and fro');
  await host.deviceDel(nic);
  await lost;
  const error = await busy;
  clearInterval(alive);
  assert.ok(error instanceof Error);
  assert.equal(port.lost?.code, 'ENODEV');
  await port.stop();
  await host.deviceGone(nic);
  await host.unwire(wire);
});

/** A port that receives nothing, and does not end. */
class SilentPort extends SoftwarePort {
  protected readonly hasPackets = false;
  protected begin(): void {
    // It has no queues.
  }
  protected finish(): void {
    this.bell.ring();
  }
  close(): void {
    this.endEvents();
  }
  rx(): number {
    return 0;
  }
  tx(): number {
    return 0;
  }
}

test('a port that comes late to a forwarder works, goes while packets run, and comes again', async () => {
  await using eal = await Eal.start({ iommu: CHOICE });
  const pool = eal.pools.create({ elements: 2048, elementSize: 2176 });
  const packets = new Packets(pool);
  const first = new SilentPort('silent', 0);
  await first.start({ packets });
  const forwarder = new Forwarder({ packets, mode: 'macswap', topology: 'loop' });
  forwarder.add(first);
  const over = new AbortController();
  const runs = forwarder.run({ signal: over.signal });
  for (let round = 0; round < 2; round++) {
    await plugIn();
    const device = await eal.probe(`pci:${HOTPLUG}`);
    const late = device.use(e1000eDriver);
    await until(() => late.link.up, 'its link is up');
    await late.start({ packets, maxFrame: MOST });
    forwarder.add(late);
    // Each goes round between the echo and the forwarder, for ever.
    for (let i = 0; i < 16; i++) {
      const bytes = new Uint8Array(64 + 100 * i);
      writeFrame(bytes, i);
      assert.equal(late.tx(0, Int32Array.of(packets.from(bytes))), 1);
    }
    await until(async () => (await host.echoed(wire)) > 500, 'frames go round');
    if (round > 0) continue;
    const lost = once(eal.events, 'lost');
    await host.deviceDel(nic);
    await lost;
    forwarder.remove(late);
    await late.stop();
    assert.equal(late.lost?.code, 'ENODEV');
    await host.deviceGone(nic);
    await host.unwire(wire);
  }
  over.abort();
  await runs;
  for (const port of forwarder.ports) await port.stop();
  assert.equal(pool.available, 2048);
  pool.free();
});
