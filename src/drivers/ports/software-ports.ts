/** The drivers of ports without hardware. */
import type { Device, Driver, ProbeContext } from '../../bus/model.js';
import { DmaError, invalid } from '../../errors.js';
import { parseSize } from '../../units.js';
import { LEAST_FRAME } from '../../net/port-base.js';
import { MOST_QUEUES } from './software-port.js';
import { NullPort } from './null-port.js';
import { PcapPort } from './pcap-port.js';
import { TapInterface } from './tap-interface.js';
import { TapPort } from './tap-port.js';
import { OwnRingPort } from './own-ring-port.js';
import type { Port } from '../../net/port.js';
import type { RingPortBase } from './ring-port-base.js';
import type { SoftwarePort } from './software-port.js';

/** What their keys mean, for help pages. */
export const PORT_KEYS =
  'vdev:nullN takes size=BYTES: it receives frames of zeros of this size (default: none). ' +
  'vdev:ringN takes size=N, the numbers that each of its rings holds (default: 1024), and queues=N (default: 1): its other end is in another thread or program. ' +
  'vdev:tapN takes iface=NAME, the interface of the kernel (default: tapN), mtu=BYTES and queues=N (default: 1). ' +
  'vdev:pcapN takes rx=FILE, a capture that it receives, tx=FILE, where it writes what is sent (.pcap, else pcapng), and link=N, the LINKTYPE (default: 1, Ethernet).';

/** `vdev:null0`. */
export const nullPortDriver: Driver<Port> = softwarePort('null', ['size'], ({ name, args }, number) => {
  const size = args.has('size') ? numberOf(args, 'size', LEAST_FRAME, 65_535) : 0;
  return new NullPort(name, number, size);
});

/** `vdev:ring0`. */
export const ringPortDriver: Driver<RingPortBase> = softwarePort(
  'ring',
  ['size', 'queues'],
  ({ name, busName, args }, number, { rings }) => {
    const size = numberOf(args, 'size', 1, 2 ** 20, 1024);
    const queues = numberOf(args, 'queues', 1, MOST_QUEUES, 1);
    if (rings === undefined)
      throw new DmaError({ code: 'ENOTSUP', operation: 'open', device: name, reason: 'there are no rings here' });
    return new OwnRingPort({ name, number, rings, ringName: busName, size, queues });
  },
);

/** `vdev:tap0`. */
export const tapPortDriver: Driver<TapPort> = softwarePort(
  'tap',
  ['iface', 'mtu', 'queues'],
  ({ name, busName, args }, number, { platform }) => {
    const queues = numberOf(args, 'queues', 1, MOST_QUEUES, 1);
    const mtu = args.has('mtu') ? numberOf(args, 'mtu', 68, 65_521) : undefined;
    if (platform === undefined || platform.limitation !== undefined)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'open',
        device: name,
        reason: platform?.limitation ?? 'there are no system calls here',
      });
    return new TapPort(
      name,
      number,
      platform,
      new TapInterface(platform, { name: args.get('iface') ?? busName, queues, mtu }),
    );
  },
);

/** `vdev:pcap0`. */
export const pcapPortDriver: Driver<Port> = softwarePort('pcap', ['rx', 'tx', 'link'], ({ name, args }, number) => {
  const rx = args.get('rx');
  const tx = args.get('tx');
  if (rx === undefined && tx === undefined)
    throw invalid('open', 'a pcap port without files does nothing', {
      device: name,
      hint: `name them: ${name},rx=in.pcapng,tx=out.pcapng`,
    });
  return new PcapPort(name, number, { rx, tx, link: numberOf(args, 'link', 0, 65_535, 1) });
});

function softwarePort<T extends SoftwarePort>(
  kind: string,
  keys: readonly string[],
  open: (device: Device, number: number, context: ProbeContext) => T,
): Driver<T> {
  return {
    name: `${kind}-port`,
    keys,
    buses: ['vdev'],
    deviceClass: 'net',
    takes: ({ handle }) => typeof handle === 'object' && handle !== null && 'kind' in handle && handle.kind === kind,
    probe: (device, context) => open(device, Number(/\d+$/.exec(device.busName)?.[0] ?? 0), context),
    async remove(_device, port) {
      try {
        await port.stop();
      } finally {
        port.close();
      }
    },
  };
}

/** @throws DmaError EINVAL */
function numberOf(args: ReadonlyMap<string, string>, key: string, least: number, most: number, otherwise = 0): number {
  const text = args.get(key);
  if (text === undefined) return otherwise;
  const value = parseSize(text);
  if (value !== undefined && value >= least && value <= most) return value;
  throw invalid('open', `there is no ${key}=${text}`, { hint: `it is a number from ${least} to ${most}` });
}
