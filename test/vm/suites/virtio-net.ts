/** QEMU's virtio-net through the driver of the library, with a cable whose other end echoes, by split and by packed rings. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, test } from 'node:test';
import { MEMORY_KIND_NAMES, packetMemory } from '../../../src/cli/forward/packet-memory.js';
import { OFFLOAD, Packets, virtioNetDriver, type Port, type PortEvent } from '../../../src/entry/net.js';
import { Eal, type Device } from '../../../src/index.js';
import { ETHERNET, TAG } from '../../../src/net/frames.js';
import { until } from '../../shared/until.js';
import { exchange, frameFrom, MOST } from '../frame-exchange.js';
import { bindToVfio, CHOICE, iommu, KIND, WHOLE, width } from '../guest.js';
import { host } from '../host.js';
import { HOTPLUG } from '../machine.js';

const MAC = '52:54:00:10:41:01';
/** Frames by each kind of rings, over all kinds of memory: the whole by `npm run test:vm -- --whole --only virtio-net`. */
const FRAMES = WHOLE ? 500_000 : 1500;
const ELEMENTS = 2048;
const SIZE = 2176;
/** With fewer bits there is nothing else about interrupts, links and loss. */
const skip = iommu === '39' ? 'with 48 bits' : false;

let count = 0;
let nic = '';
let wire = '';
let rings = '';

/** Puts a device with a cable into the machine, in place of another one. */
async function plugIn(kind: 'split' | 'packed'): Promise<void> {
  if (nic !== '' && kind === rings) return;
  await pullOut();
  rings = kind;
  count++;
  [nic, wire] = [`nic${process.pid}-${count}`, `wire${process.pid}-${count}`];
  await host.wire(wire);
  await host.deviceAdd({
    ...{ driver: 'virtio-net-pci', id: nic, bus: 'port0', netdev: wire, mac: MAC, romfile: '' },
    ...{ 'disable-legacy': 'on', iommu_platform: true, packed: kind === 'packed' },
  });
  await bindToVfio([HOTPLUG], { wait: true });
}

async function pullOut(): Promise<void> {
  if (nic === '') return;
  await host.deviceDel(nic);
  await host.deviceGone(nic);
  await host.unwire(wire);
  nic = '';
}

after(pullOut);

/** The kernel waits five seconds before it lets a device go: once is enough, but for the whole. */
function unplugs(kind: string): string | false {
  return kind === 'packed' && !WHOLE ? 'with --whole' : skip;
}

interface Room extends AsyncDisposable {
  readonly eal: Eal;
  readonly device: Device;
  readonly port: Port;
}

async function open(): Promise<Room> {
  const eal = await Eal.start({ iommu: CHOICE });
  try {
    const device = await eal.probe(`pci:${HOTPLUG}`);
    return { eal, device, port: device.use(virtioNetDriver), [Symbol.asyncDispose]: () => eal.stop() };
  } catch (error) {
    await eal.stop();
    throw error;
  }
}

for (const kind of ['split', 'packed'] as const) {
  test(`it is there, with ${kind} rings: address, link, limits, and the width of the IOMMU`, async () => {
    await plugIn(kind);
    await using room = await open();
    const { device, port } = room;
    assert.equal(device.domain?.kind, KIND);
    assert.equal(device.driver, virtioNetDriver);
    assert.equal(port.mac, MAC);
    assert.equal(port.link.up, true);
    assert.deepEqual([port.limits.rxQueues, port.limits.descriptors.most], [1, 256]);
    assert.ok(device.access.interruptCount('msix') > 1);
    assert.ok(device.domain?.constraints.windows.every(({ end }) => end <= 2 ** width()));
  });

  test(`frames of 60 to 9,014 bytes go and come back whole, each once, from all kinds of memory: ${kind}`, async (t) => {
    await using room = await open();
    const { eal, device, port } = room;
    const frames = Math.floor(FRAMES / MEMORY_KIND_NAMES.length);
    const before = await host.echoed(wire);
    for (const [i, name] of MEMORY_KIND_NAMES.entries()) {
      const begun = performance.now();
      using memory = packetMemory(eal, name, ELEMENTS, SIZE);
      memory.map(device);
      const packets = new Packets(memory.pool);
      port.resetStatistics();
      await port.start({ packets, maxFrame: MOST });
      await exchange(port, packets, frames, 41 + i);
      const { rxPackets, txPackets, rxErrors, txErrors } = port.statistics();
      assert.deepEqual([rxPackets, txPackets, rxErrors, txErrors], [frames, frames, 0, 0]);
      await port.stop();
      assert.equal(memory.pool.available, ELEMENTS);
      t.diagnostic(`${name}: ${Math.round(frames / ((performance.now() - begun) / 1000))} frames a second`);
    }
    assert.equal((await host.echoed(wire)) - before, frames * MEMORY_KIND_NAMES.length);
    assert.deepEqual(device.explainFaults(), []);
  });

  test(`a program that is killed while it sends leaves a device that works: ${kind}`, { skip }, async (t) => {
    const command = ['forward', '--iommu', CHOICE, '--port', `pci:${HOTPLUG}`, '--mode', 'txonly'];
    const before = await host.echoed(wire);
    const child = spawn(process.execPath, ['dist/src/cli/main.js', ...command], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    await until(async () => (await host.echoed(wire)) > before + 100, 'it sends');
    child.kill('SIGKILL');
    await once(child, 'exit');
    await using room = await open();
    const { eal, port } = room;
    const pool = eal.pools.create({ elements: ELEMENTS, elementSize: SIZE });
    const packets = new Packets(pool);
    await port.start({ packets, maxFrame: MOST });
    // What was on its way to the other program may still come.
    const burst = new Int32Array(64);
    for (let idle = 0; idle < 5; idle++) {
      await port.readable(0, { timeoutMs: 50 });
      for (let left = port.rx(0, burst); left > 0; left = port.rx(0, burst), idle = 0) packets.release(burst, left);
    }
    await exchange(port, packets, 200, 2);
    await port.stop();
    assert.equal(pool.available, ELEMENTS);
    pool.free();
  });

  test(
    `tags are put in; the link goes and comes; starting again and again loses no element: ${kind}`,
    { skip },
    async () => {
      await using room = await open();
      const { eal, device, port } = room;
      const pool = eal.pools.create({ elements: ELEMENTS, elementSize: SIZE });
      const packets = new Packets(pool);
      const burst = new Int32Array(4);
      await port.start({ packets, maxFrame: MOST });
      const packet = packets.from(frameFrom(port, 100, 1));
      packets.flags[packet] = OFFLOAD.TX_VLAN;
      packets.vlan[packet] = 0x2005;
      assert.equal(port.tx(0, Int32Array.of(packet)), 1);
      await port.readable(0);
      assert.equal(port.rx(0, burst), 1);
      const came = packets.copy(burst[0]);
      assert.deepEqual([...came.subarray(ETHERNET.TYPE, ETHERNET.TYPE + TAG)], [0x81, 0, 0x20, 0x05]);
      assert.deepEqual(came.subarray(ETHERNET.TYPE + TAG), frameFrom(port, 100, 1).subarray(ETHERNET.TYPE));
      packets.releaseOne(burst[0]);
      const events = port.events();
      const next = async (): Promise<PortEvent> => {
        const result = await events.next();
        assert.ok(result.done !== true);
        return result.value;
      };
      const alive = setInterval(() => undefined, 1000);
      for (const up of [false, true]) {
        await host.qmp('set_link', { name: nic, up });
        const event = await next();
        assert.ok(event.kind === 'link' && event.link.up === up, JSON.stringify(event));
      }
      clearInterval(alive);
      // Others' frames come only when it is promiscuous: the other end answers to who sent.
      const other = frameFrom(port, 64, 7);
      other[11]++;
      for (const promiscuous of [false, true]) {
        port.promiscuous = promiscuous;
        assert.equal(port.tx(0, Int32Array.of(packets.from(other), packets.from(frameFrom(port, 64, 8)))), 2);
        const seen: number[] = [];
        await until(() => {
          const taken = port.rx(0, burst);
          for (const each of burst.subarray(0, taken)) seen.push(packets.copy(each)[5]);
          packets.release(burst, taken);
          return seen.includes(1);
        }, 'its own frame comes back');
        assert.deepEqual(seen, promiscuous ? [2, 1] : [1]);
      }
      for (let round = 0; round < 10; round++) {
        // Frames are under way in both directions.
        for (let i = 0; i < 20; i++) {
          const sent = packets.from(frameFrom(port, 1514, i));
          if (port.tx(0, Int32Array.of(sent)) === 0) packets.releaseOne(sent);
        }
        await port.stop();
        assert.equal(pool.available, ELEMENTS);
        await port.start({ packets });
      }
      await port.stop();
      pool.free();
      assert.deepEqual(device.explainFaults(), []);
    },
  );

  test(
    `a device that is unplugged under load is lost, and gives everything back; another one comes late: ${kind}`,
    { skip: unplugs(kind) },
    async () => {
      await using room = await open();
      const { eal, port } = room;
      const pool = eal.pools.create({ elements: ELEMENTS, elementSize: SIZE });
      const packets = new Packets(pool);
      await port.start({ packets, maxFrame: MOST });
      const alive = setInterval(() => undefined, 1000);
      const lost = once(eal.events, 'lost');
      const before = await host.echoed(wire);
      const busy = exchange(port, packets, 1_000_000, 3).catch((error: unknown) => error);
      await until(async () => (await host.echoed(wire)) > before + 100, 'frames go to and fro');
      await host.deviceDel(nic);
      await lost;
      const error = await busy;
      clearInterval(alive);
      assert.ok(error instanceof Error);
      assert.equal(port.lost?.code, 'ENODEV');
      await port.stop();
      await host.deviceGone(nic);
      await host.unwire(wire);
      nic = '';
      await plugIn(kind === 'split' ? 'packed' : 'split');
      const late = (await eal.probe(`pci:${HOTPLUG}`)).use(virtioNetDriver);
      const fresh = eal.pools.create({ elements: ELEMENTS, elementSize: SIZE });
      const other = new Packets(fresh);
      await late.start({ packets: other, maxFrame: MOST });
      await exchange(late, other, 100, 4);
      await late.stop();
      assert.equal(fresh.available, ELEMENTS);
      fresh.free();
    },
  );
}
