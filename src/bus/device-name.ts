/**
 * How devices are named: `bus:name[,key=value...]`, and DPDK's layered form `bus=pci,addr=...[,key=value]/driver=x[,...]`.
 * The layered form is also a filter, since it may leave parts out.
 */
import { mustBeString } from '../check.js';
import { DmaError, invalid } from '../errors.js';

/** The parts of a device name or filter. A part that the text leaves out is `undefined` or empty. */
export interface DeviceSpec {
  readonly bus: string | undefined;
  /** The name on the bus, as written. */
  readonly name: string | undefined;
  readonly driver: string | undefined;
  /** The class of device that its driver provides (`dma`, `net` ...). */
  readonly deviceClass: string | undefined;
  /** All other keys. */
  readonly args: ReadonlyMap<string, string>;
}

const FORM = 'write bus:name[,key=value...]';

const LAYERS = ['bus', 'class', 'driver'];
/** The keys that give the name in the bus layer. */
const NAME_KEYS = ['name', 'addr'];

/**
 * Reads a device name or filter of either form.
 *
 * A `/` begins a layer only before `bus=`, `class=` or `driver=`. Any other `/` belongs to a value, so that paths can
 * be names.
 *
 * @throws DmaError EINVAL for a malformed text, E2BIG for more than three layers
 */
export function parseDeviceSpec(text: string): DeviceSpec {
  mustBeString(text, 'a device name', 'device name');
  return /^(?:bus|class|driver)=/.test(text) ? parseLayers(text) : parsePlain(text);
}

function parsePlain(text: string): DeviceSpec {
  const [head, ...rest] = text.split(',');
  const match = /^([a-z][a-z0-9-]*):(.*)$/s.exec(head);
  const name = checkName(match === null ? head : match[2], text);
  return { bus: match?.[1], name, driver: undefined, deviceClass: undefined, args: parsePairs(rest, text) };
}

function parseLayers(text: string): DeviceSpec {
  const layers = text.split(/\/(?=(?:bus|class|driver)=)/);
  if (layers.length > LAYERS.length)
    throw new DmaError({ code: 'E2BIG', operation: 'device name', reason: `"${text}" has more than three layers` });
  const heads = new Map<string, string>();
  const pairs: string[] = [];
  let name: string | undefined;
  for (const layer of layers) {
    const [head, ...rest] = layer.split(',');
    const [kind, value] = splitPair(head, text);
    if (heads.has(kind)) throw invalid('device name', `"${text}" has two layers ${kind}`);
    heads.set(kind, value);
    const nameAt = kind === 'bus' ? rest.findIndex((part) => NAME_KEYS.includes(splitPair(part, text)[0])) : -1;
    if (nameAt >= 0) name = checkName(splitPair(rest.splice(nameAt, 1)[0], text)[1], text);
    pairs.push(...rest);
  }
  const args = parsePairs(pairs, text);
  return { bus: heads.get('bus'), name, driver: heads.get('driver'), deviceClass: heads.get('class'), args };
}

function checkName(name: string, text: string): string {
  if (name !== '') return name;
  throw invalid('device name', `"${text}" names no device`, { hint: FORM });
}

function parsePairs(parts: readonly string[], text: string): Map<string, string> {
  const pairs = new Map<string, string>();
  for (const part of parts) {
    const [key, value] = splitPair(part, text);
    if (pairs.has(key)) throw invalid('device name', `"${text}" gives ${key} twice`, { hint: 'leave one out' });
    pairs.set(key, value);
  }
  return pairs;
}

function splitPair(part: string, text: string): [key: string, value: string] {
  const at = part.indexOf('=');
  if (at <= 0) throw invalid('device name', `"${part}" in "${text}" is not key=value`, { hint: FORM });
  return [part.slice(0, at), part.slice(at + 1)];
}
