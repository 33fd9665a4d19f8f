/** The drivers of ports without hardware. */
import type { Device, Driver } from '../../bus/model.js';
import { invalid } from '../../errors.js';
import { parseSize } from '../../units.js';
import { LEAST_FRAME } from '../../net/port-base.js';
import { NullPort } from './null-port.js';
import { PcapPort } from './pcap-port.js';
import type { Port } from '../../net/port.js';
import type { SoftwarePort } from './software-port.js';

/** What their keys mean, for help pages. */
export const PORT_KEYS =
  'vdev:nullN takes size=BYTES: it receives frames of zeros of this size (default: none). ' +
  'vdev:pcapN takes rx=FILE, a capture that it receives, tx=FILE, where it writes what is sent (.pcap, else pcapng), and link=N, the LINKTYPE (default: 1, Ethernet).';

/** `vdev:null0`. */
export const nullPortDriver = softwarePort('null', ['size'], ({ name, args }, number) => {
  const size = args.has('size') ? numberOf(args, 'size', LEAST_FRAME, 65_535) : 0;
  return new NullPort(name, number, size);
});

/** `vdev:pcap0`. */
export const pcapPortDriver = softwarePort('pcap', ['rx', 'tx', 'link'], ({ name, args }, number) => {
  const rx = args.get('rx');
  const tx = args.get('tx');
  if (rx === undefined && tx === undefined)
    throw invalid('open', 'a pcap port without files does nothing', {
      device: name,
      hint: `name them: ${name},rx=in.pcapng,tx=out.pcapng`,
    });
  return new PcapPort(name, number, { rx, tx, link: numberOf(args, 'link', 0, 65_535, 1) });
});

function softwarePort(
  kind: string,
  keys: readonly string[],
  open: (device: Device, number: number) => SoftwarePort,
): Driver<Port> {
  const driver: Driver<SoftwarePort> = {
    name: `${kind}-port`,
    keys,
    buses: ['vdev'],
    deviceClass: 'net',
    takes: ({ handle }) => typeof handle === 'object' && handle !== null && 'kind' in handle && handle.kind === kind,
    probe: (device) => open(device, Number(/\d+$/.exec(device.busName)?.[0] ?? 0)),
    async remove(_device, port) {
      try {
        await port.stop();
      } finally {
        port.close();
      }
    },
  };
  return driver;
}

/** @throws DmaError EINVAL */
function numberOf(args: ReadonlyMap<string, string>, key: string, least: number, most: number, otherwise = 0): number {
  const text = args.get(key);
  if (text === undefined) return otherwise;
  const value = parseSize(text);
  if (value !== undefined && value >= least && value <= most) return value;
  throw invalid('open', `there is no ${key}=${text}`, { hint: `it is a number from ${least} to ${most}` });
}
