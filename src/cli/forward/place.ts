/** Where packets are moved: memory, packets and ports, of this program, or of another one that it is attached to. */
import { invalid, DmaError, throwFirst } from '../../errors.js';
import { openOtherEnd, Packets, portOf, RingPort, type Port } from '../../entry/net.js';
import { Eal, type Device } from '../../index.js';
import { parseDeviceSpec } from '../../bus/device-name.js';
import type { ContainerChoice } from '../../entry/driver.js';
import type { Output } from '../shared/output.js';
import { packetMemory, PACKETS, type MemoryKind } from './packet-memory.js';

/** What is asked for. */
export interface PlaceOptions {
  readonly port: readonly string[];
  readonly memory: MemoryKind;
  readonly iommu: ContainerChoice;
  readonly mbufSize: number;
  /** Lets other programs have the other ends of ring ports: the name of the `Eal`. */
  readonly name?: string;
  /** The name of the program that has memory and packets. */
  readonly attach?: string;
}

/** What a command that moves packets works with. Disposing it gives everything back. */
export interface Place extends AsyncDisposable {
  readonly packets: Packets;
  readonly ports: readonly Port[];
  /** Aborted when the user interrupts, and when the program that has the memory ends. */
  readonly signal: AbortSignal;
  /** Maps the memory of packets for a port. */
  map(port: Port): void;
  /** @throws DmaError ENODEV if the program that has the memory has ended, or freed the rings of a port */
  mustGoOn(): void;
}

/**
 * Opens it.
 *
 * @param elements of the pool, if it is this program's
 * @throws DmaError as `Eal.start`, `eal.probe`, `portOf`, `Eal.attach`; ENOENT if the other program moves no packets
 */
export async function openPlace(
  options: PlaceOptions,
  elements: number,
  { output, signal }: { readonly output: Output; readonly signal: AbortSignal },
): Promise<Place> {
  await using undo = new AsyncUndo();
  const onNotice = (text: string): void => output.note(`note: ${text}`);
  const { iommu, name, attach } = options;
  const eal = await Eal.start({ name, iommu, origins: false, onForgotten: () => undefined, memory: { onNotice } });
  undo.add(() => eal.stop());
  signal.throwIfAborted();
  const place = attach === undefined ? undefined : await attached(attach, undo, signal);
  const ports: Port[] = [];
  const devices = new Map<Port, Device>();
  for (const each of options.port) {
    const other = place === undefined ? undefined : ringOf(each);
    if (place !== undefined && other !== undefined) {
      const port = await openOtherEnd(other.name, place.rings, { queues: other.queues, signal });
      undo.add(() => port.stop());
      ports.push(port);
      continue;
    }
    const device = await eal.probe(each);
    if (place !== undefined && device.ids !== undefined) throw notHere(each, place.name);
    const port = portOf(device);
    ports.push(port);
    devices.set(port, device);
  }
  signal.throwIfAborted();
  const { packets, map } = place ?? ownPackets(eal, options, elements, undo);
  const given = undo.release();
  return {
    packets,
    ports,
    signal: place?.signal ?? signal,
    map: (port) => {
      const device = devices.get(port);
      if (device !== undefined) map(device);
    },
    mustGoOn: () => place?.mustGoOn(ports),
    [Symbol.asyncDispose]: async () => {
      for (const port of ports) given.add(() => port.stop());
      await given[Symbol.asyncDispose]();
    },
  };
}

interface PacketSource {
  readonly packets: Packets;
  readonly map: (device: Device) => void;
}

function ownPackets(eal: Eal, options: PlaceOptions, elements: number, undo: AsyncUndo): PacketSource {
  const memory = packetMemory(eal, options.memory, elements, options.mbufSize);
  undo.add(() => memory[Symbol.dispose]());
  const { pool } = memory;
  if (options.name === undefined) return { packets: new Packets(pool), map: (device) => memory.map(device) };
  const zone = eal.zones.reserve(PACKETS, Packets.tableBytes(pool.elements));
  return { packets: new Packets(pool, { table: zone.bytes() }), map: (device) => memory.map(device) };
}

/** The memory and packets of another program. */
interface AttachedPlace extends PacketSource {
  readonly name: string;
  readonly rings: Parameters<typeof openOtherEnd>[1];
  readonly signal: AbortSignal;
  readonly mustGoOn: (ports: readonly Port[]) => void;
}

async function attached(name: string, undo: AsyncUndo, signal: AbortSignal): Promise<AttachedPlace> {
  const operation = 'forward';
  const store = await Eal.attach(name, { label: 'anydma forward' });
  undo.add(() => store.close());
  const over = new AbortController();
  const gone = (cause?: DmaError): DmaError =>
    new DmaError({
      code: 'ENODEV',
      operation,
      reason: `the program ${name} (process ${store.pid}), which has the memory of packets, has ended or stopped its ports`,
      cause,
    });
  store.events.on('ended', (cause) => over.abort(gone(cause)));
  const pool = await store.pools.find(PACKETS);
  const zone = await store.zones.find(PACKETS);
  if (pool === undefined || zone === undefined)
    throw new DmaError({
      code: 'ENOENT',
      operation,
      reason: `the program ${name} (process ${store.pid}) has no packets that others can use`,
      hint: `start it by "anydma forward --name ${name}"; programs of your own make a pool and a zone, both called ${PACKETS}`,
    });
  return {
    name,
    packets: new Packets(pool, { table: zone.bytes() }),
    map: () => undefined,
    rings: store.rings,
    signal: AbortSignal.any([signal, over.signal]),
    mustGoOn: (ports) => {
      if (over.signal.aborted) throw over.signal.reason;
      // What it freed at its end may be seen before its end.
      const lost = ports.find((port) => port instanceof RingPort && port.lost?.code === 'ENODEV')?.lost;
      if (lost !== undefined || !store.live) throw gone(lost);
    },
  };
}

/** `vdev:ring0,queues=2` */
function ringOf(text: string): { readonly name: string; readonly queues: number } | undefined {
  const { bus, name, args } = parseDeviceSpec(text);
  if ((bus ?? 'vdev') !== 'vdev' || name === undefined || !/^ring\d+$/.test(name)) return undefined;
  return { name, queues: Number(args.get('queues') ?? 1) };
}

function notHere(device: string, name: string): DmaError {
  return invalid('forward', `packets of the program ${name} can not be mapped for it here`, {
    device,
    hint: `give it as a port to ${name}, which has the memory, and connect both by vdev:ring0`,
  });
}

/** Steps that give back what was taken, last first. */
class AsyncUndo implements AsyncDisposable {
  #steps: (() => Promise<void> | void)[] = [];

  add(step: () => Promise<void> | void): void {
    this.#steps.unshift(step);
  }

  /** From now on the result has the steps. */
  release(): AsyncUndo {
    const other = new AsyncUndo();
    [other.#steps, this.#steps] = [this.#steps, []];
    return other;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = [];
    for (const step of this.#steps.splice(0)) {
      try {
        await step();
      } catch (error) {
        errors.push(error);
      }
    }
    throwFirst(errors, 'forward');
  }
}
