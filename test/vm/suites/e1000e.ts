/** QEMU's e1000e through the driver of the library, with a cable whose other end echoes: frames of every length, from all kinds of memory. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { crc32 } from 'node:zlib';
import { checksum, sumOf } from '../../../src/net/checksum.js';
import { e1000eDriver, NONE, OFFLOAD, Packets, type Port, type PortEvent } from '../../../src/entry/net.js';
import { Eal, MiB, type Device, type Pool } from '../../../src/index.js';
import { Random } from '../../shared/random.js';
import { until } from '../../shared/until.js';
import { bindToVfio, CHOICE, KIND, WHOLE, width } from '../guest.js';
import { host } from '../host.js';
import { HOTPLUG } from '../machine.js';

const MAC = '52:54:00:82:57:4c';
const OWN = [0x52, 0x54, 0, 0x82, 0x57, 0x4c];
const PEER = [2, 0, 0, 0, 0, 9];
const LEAST = 60;
const MOST = 9014;
/** Frames in all, over the three kinds of memory: the whole by `npm run test:vm -- --whole --only e1000e`. */
const FRAMES = WHOLE ? 1_000_000 : 100_000;
/** Frames that are under way at most, so that no socket on the way has to drop any. */
const WINDOW = 48;
const HEADER = 14 + 4 + 4;

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
function writeFrame(into: Uint8Array, number: number, random: Random): void {
  into.set([...PEER, ...OWN, 0x88, 0xb5]);
  const view = new DataView(into.buffer, into.byteOffset, into.length);
  view.setUint32(14, number);
  let word = random.below(2 ** 30);
  for (let i = HEADER; i < into.length; i++) into[i] = word = (Math.imul(word, 69_069) + 1) >>> 0;
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
async function exchange(port: Port, packets: Packets, frames: number, seed: number): Promise<void> {
  const random = new Random(seed);
  const lengths = new Uint16Array(frames);
  const back = new Uint8Array(frames);
  const scratch = new Uint8Array(MOST);
  const burst = new Int32Array(32);
  let [made, done] = [0, 0];
  let waiting: number[] = [];
  while (done < frames) {
    while (waiting.length < 32 && made < frames && made - done < WINDOW) {
      // Often the shortest, the longest, and what just fits a buffer.
      const length = random.oneIn(8)
        ? random.pick([LEAST, LEAST + 1, 2048, 2049, 4096, MOST])
        : LEAST + random.below(MOST - LEAST + 1);
      const bytes = scratch.subarray(0, length);
      writeFrame(bytes, made, random);
      const packet = packets.from(bytes);
      if (packet === NONE) break;
      lengths[made++] = length;
      waiting.push(packet);
    }
    const sent = port.tx(0, Int32Array.from(waiting));
    waiting = waiting.slice(sent);
    const came = port.rx(0, burst);
    for (const packet of burst.subarray(0, came)) {
      const frame = packets.copy(packet);
      const number = numberOf(frame);
      assert.equal(frame.length, lengths[number]);
      assert.equal(back[number]++, 0, `frame ${number} came twice`);
      done++;
    }
    packets.release(burst, came);
    if (came === 0) await port.readable(0, { timeoutMs: 20 });
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

test('frames of 60 to 9,014 bytes go and come back whole, each once, from all kinds of memory', async () => {
  await using room = await open();
  const { eal, device, port } = room;
  using user = eal.external.allocate(8 * MiB);
  using anon = eal.external.allocate(8 * MiB, { source: 'anonymous' });
  eal.heaps.create('user');
  eal.heaps.addMemory('user', user);
  const shape = { elements: 2048, elementSize: 2176 };
  const pools: [Pool, () => void][] = [
    [eal.pools.create(shape), () => undefined],
    [eal.pools.create({ ...shape, heap: 'user' }), () => undefined],
  ];
  const own = eal.pools.create({ ...shape, external: [anon] });
  const mapped = device.dmaMapPool(own);
  pools.push([own, () => mapped.unmap()]);
  const before = await host.echoed(wire);
  for (const [i, [pool, unmap]] of pools.entries()) {
    const packets = new Packets(pool);
    await port.start({ packets, maxFrame: MOST });
    const frames = Math.floor(FRAMES / pools.length);
    await exchange(port, packets, frames, 14 + i);
    const { rxPackets, txPackets, rxErrors, txErrors, rxMissed } = port.statistics();
    assert.deepEqual([rxPackets, txPackets, rxErrors, txErrors, rxMissed], [frames, frames, 0, 0, 0]);
    port.resetStatistics();
    if (pool === own) assert.throws(unmap, /receive queue 0 uses this memory/);
    await port.stop();
    assert.equal(pool.available, shape.elements);
    unmap();
    pool.free();
  }
  assert.equal((await host.echoed(wire)) - before, Math.floor(FRAMES / 3) * 3);
  eal.heaps.removeMemory('user', user);
  eal.heaps.destroy('user');
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
  await exchange(port, packets, 100, 1);
  for (let round = 0; round < 10; round++) {
    // Frames are under way in both directions.
    for (let i = 0; i < 20; i++) {
      const bytes = new Uint8Array(1514);
      writeFrame(bytes, i, new Random(i));
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
  const child = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  await until(async () => (await host.echoed(wire)) > before + 100, 'it sends');
  child.kill('SIGKILL');
  await once(child, 'exit');
  await using room = await open();
  const { eal, port } = room;
  const pool = eal.pools.create({ elements: 1024, elementSize: 2176 });
  const packets = new Packets(pool);
  await port.start({ packets, maxFrame: MOST });
  // What was on its way to the other program may still come.
  await new Promise((resolve) => setTimeout(resolve, 500));
  const burst = new Int32Array(64);
  for (let left = port.rx(0, burst); left > 0; left = port.rx(0, burst)) packets.release(burst, left);
  await exchange(port, packets, 500, 2);
  await port.stop();
  assert.equal(pool.available, 1024);
  pool.free();
});

test('an adapter that is unplugged under load is lost, and gives everything back; another one comes late', async () => {
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
  await plugIn();
  const again = await eal.probe(`pci:${HOTPLUG}`);
  const late = again.use(e1000eDriver);
  await until(() => late.link.up, 'its link is up');
  const fresh = eal.pools.create({ elements: 1024, elementSize: 2176 });
  const other = new Packets(fresh);
  await late.start({ packets: other, maxFrame: MOST });
  await exchange(late, other, 200, 4);
  await late.stop();
  assert.equal(fresh.available, 1024);
  fresh.free();
});
