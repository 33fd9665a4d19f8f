/** Reads what a client hands over to another process: what the server told about itself and its device. */
import { type Fields, nonsense } from '../fields.js';
import type { ClientRegion } from './client-options.js';
import { DEFAULT_CAPABILITIES, type Capabilities, type DeviceInfo, type IrqDescription } from './messages.js';

/** What a client continues with. */
export interface HandedClient {
  readonly capabilities: Capabilities;
  readonly info: DeviceInfo;
  readonly regions: readonly ClientRegion[];
  readonly interrupts: readonly IrqDescription[];
  /** The socket for commands, and the twin if there is one. */
  readonly sockets: readonly number[];
  /** Descriptors of regions. */
  readonly files: readonly number[];
}

/** @param fds the descriptors: sockets, then those of regions in their order @throws DmaError EPROTO */
export function readHanded(state: Fields, fds: readonly number[]): HandedClient {
  const count = state.number('sockets');
  const sockets = fds.slice(0, count);
  const files = fds.slice(count);
  const left = [...files];
  const capabilities = state.objectAt('capabilities');
  const info = state.objectAt('info');
  const regions = state.list('regions').map((region): ClientRegion => {
    const fd = region.boolean('hasFd') ? left.shift() : undefined;
    if (region.boolean('hasFd') && fd === undefined) throw nonsense('takeOver', 'a region without its descriptor');
    return {
      index: region.number('index'),
      size: region.number('size'),
      readable: region.boolean('readable'),
      writable: region.boolean('writable'),
      mappable: region.boolean('mappable'),
      fdOffset: region.number('fdOffset'),
      areas: region.list('areas').map((area) => ({ offset: area.number('offset'), length: area.number('length') })),
      argsz: region.number('argsz'),
      fd,
    };
  });
  if (count < 1 || count > 2 || sockets.length !== count || left.length > 0)
    throw nonsense('takeOver', 'the descriptors of a client');
  return {
    capabilities: {
      ...DEFAULT_CAPABILITIES,
      maxMsgFds: capabilities.number('maxMsgFds'),
      maxDataXferSize: capabilities.number('maxDataXferSize'),
      maxDmaMaps: capabilities.number('maxDmaMaps'),
      pgsizes: capabilities.number('pgsizes'),
    },
    info: {
      resettable: info.boolean('resettable'),
      pci: info.boolean('pci'),
      regionCount: info.number('regionCount'),
      interruptKinds: info.number('interruptKinds'),
    },
    regions,
    interrupts: state.list('interrupts').map((irq) => ({
      index: irq.number('index'),
      count: irq.number('count'),
      eventfd: irq.boolean('eventfd'),
      maskable: irq.boolean('maskable'),
      automasked: irq.boolean('automasked'),
    })),
    sockets,
    files,
  };
}

/** What was received and not handled, socket by socket. */
export function restOf(state: Fields): Uint8Array[] {
  return state.strings('rest').map((text) => new Uint8Array(Buffer.from(text, 'base64')));
}

/** Bytes, as {@link restOf} reads them. */
export function handedBytes(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64');
}
