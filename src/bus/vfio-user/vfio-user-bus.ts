/**
 * The bus of devices in other processes, each behind the UNIX socket of a vfio-user server:
 * `vfio-user:/run/device.sock`.
 */
import { absolutePath } from '../../check.js';
import type { AddressSpace } from '../../dma/address-space.js';
import { VfioUserSpace } from '../../vfio-user/space.js';
import { lostDevice } from '../../dma/mapping.js';
import { invalid, throwFirst, undoAll, withUndo, type DmaError } from '../../errors.js';
import { nonsense, type Fields } from '../../fields.js';
import type { Platform } from '../../platform/ports.js';
import type { Va } from '../../units.js';
import {
  MMAP_CHOICES,
  SHARE_CHOICES,
  STORES_CHOICES,
  VfioUserClient,
  type ClientOptions,
  type DmaTarget,
} from '../../vfio-user/client.js';
import { closedDevice } from '../closed-device.js';
import { handedIds, readIds } from '../handed-ids.js';
import type { Bus, Device, IdMatch, OpenedDevice, TakenDevice } from '../model.js';
import { PCI_REGION } from '../device-access.js';
import { VfioAccess } from '../vfio-access.js';
import { enableFunction } from './enable-function.js';

/** Explains its keys, for help pages; docs/vfio-user.md explains more. */
export const VFIO_USER_KEYS = `vfio-user:PATH takes timeout=MS, for connecting and for each call (5000);
  mmap=auto|trust|sealed|never, which registers are mapped: auto maps those of servers of this user and of root, and all others are
  accessed by messages (about 100 us each); share=always|never, whether the server gets file descriptors of memory, which give it
  the whole file for good, or asks for each access; stores=posted|answered, whether stores to registers by message wait for the
  server, which can tell only then that it refuses them; user=NUMBER, the user that must run the server.`;

/** What the bus needs. */
export interface VfioUserBusOptions {
  readonly platform: Platform;
  /** Registered memory, for accesses that a device makes by messages. */
  readonly bytesAt: (va: Va, length: number, access: 'read' | 'write') => Uint8Array | undefined;
}

interface Connection {
  readonly space: AddressSpace;
  /** Set when the device is probed. */
  device: Device | undefined;
}

/**
 * Opens these devices. Keys of device names: `timeout=MS` for connecting and for each call (default 5000), `mmap=`
 * which regions are mapped (`auto`, `trust`, `sealed`, `never`: see `ClientOptions.mmap`), `share=` whether the server
 * gets file descriptors of memory (`always`, `never`), `stores=` whether stores to registers by message wait for the
 * server (`posted`, `answered`), `user=NUMBER` the user that must run the server.
 */
export class VfioUserBus implements Bus {
  readonly name = 'vfio-user';
  readonly keys = ['timeout', 'mmap', 'share', 'stores', 'user'];
  readonly #options: VfioUserBusOptions;
  readonly #connections = new Map<string, Connection>();

  constructor(options: VfioUserBusOptions) {
    this.#options = options;
  }

  readonly naming = 'by the path of its socket, with a slash in it: /run/device.sock, ./device.sock';

  /** Accepts every name that contains a slash. @throws DmaError ENOENT, see {@link absolutePath} */
  parse(name: string): string | undefined {
    return name.includes('/') ? absolutePath(name, 'probe') : undefined;
  }

  async open(path: string, args: ReadonlyMap<string, string>): Promise<OpenedDevice> {
    const { platform } = this.#options;
    const loss = new Loss();
    const client = await VfioUserClient.connect(platform, path, this.#clientOptions(path, args, loss));
    try {
      const isPci = client.info.pci && (client.regions.at(PCI_REGION.CONFIG)?.size ?? 0) > 0;
      if (isPci) enableFunction(client);
      if (args.get('mmap') !== 'never') noteUnmapped(path, client);
      const ids = isPci ? idsOf(client) : undefined;
      return this.#opened({ path, client, ids, access: new VfioAccess(platform, client), loss });
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /** Continues with a connection that another process has handed over. */
  takeOver(
    path: string,
    args: ReadonlyMap<string, string>,
    { state, fds }: { readonly state: Fields; readonly fds: readonly number[] },
  ): TakenDevice {
    const { platform } = this.#options;
    const loss = new Loss();
    const own = state.number('clientFds');
    const options = this.#clientOptions(path, args, loss);
    const { client, start } = VfioUserClient.takeOver(platform, state.objectAt('client'), fds.slice(0, own), options);
    const access = new VfioAccess(platform, client);
    access.takeOver(state.objectAt('interrupts'), fds.slice(own));
    const abandon = (error: DmaError): void => {
      this.#connections.delete(path);
      throwFirst(undoAll([() => access.abandon(), () => client.abandon(error)]), 'takeOver');
    };
    try {
      const opened = this.#opened({ path, client, ids: readIds(state, 'ids'), access, loss });
      return { opened, start: () => (start(), access.start()), abandon };
    } catch (error) {
      throw withUndo(error, 'takeOver', undoAll([() => abandon(nonsense('takeOver', 'ids'))]));
    }
  }

  #clientOptions(path: string, args: ReadonlyMap<string, string>, loss: Loss): ClientOptions {
    return {
      ...readArgs(args),
      dmaTarget: this.#target(path),
      lostAs: (error) => lostDevice('vfio-user', `vfio-user:${path}`, error),
      onDisconnect: (error) => loss.tell(error),
    };
  }

  #opened({ path, client, ids, access, loss }: Parts): OpenedDevice {
    this.#connections.set(path, { space: new VfioUserSpace(client), device: undefined });
    return {
      ids,
      access,
      onLost: (callback) => loss.listen(callback),
      handOver: async (why) => {
        const connection = await client.handOver(why);
        const interrupts = access.handOver();
        return {
          state: {
            ...{ client: connection.state, clientFds: connection.fds.length },
            ...{ interrupts: interrupts.state, ids: handedIds(ids) },
          },
          fds: [...connection.fds, ...interrupts.fds],
          resume: () => {
            connection.resume();
            access.resume();
          },
          end: (error) => {
            this.#connections.delete(path);
            throwFirst(undoAll([() => access.abandon(), () => client.abandon(error)]), 'handOver');
          },
        };
      },
      close: () => {
        this.#connections.delete(path);
        try {
          access.close();
        } finally {
          client.close();
        }
      },
    };
  }

  /** Every connection is its own address space. */
  spaceOf(device: Device): AddressSpace {
    const connection = this.#connections.get(device.busName);
    if (connection === undefined) throw closedDevice(device.name);
    connection.device = device;
    return connection.space;
  }

  /** Devices in other processes get file descriptors; they could not use physical addresses. */
  iovaWish(): 'va' {
    return 'va';
  }

  /** The memory for accesses that the device makes by messages: what its domain has mapped. */
  #target(path: string): DmaTarget {
    return (iova, length, access) => {
      const where = this.#connections.get(path)?.device?.domain?.resolve(iova, length, access) ?? 'EFAULT';
      if (typeof where === 'string') return where;
      return this.#options.bytesAt(where.va, length, access) ?? 'EFAULT';
    };
  }
}

/** What a device of this bus is made of. */
interface Parts {
  readonly path: string;
  readonly client: VfioUserClient;
  readonly ids: Required<IdMatch> | undefined;
  readonly access: VfioAccess;
  readonly loss: Loss;
}

/** The loss of a connection, which may come before anybody listens. */
class Loss {
  #error: DmaError | undefined;
  #listener: ((error: DmaError) => void) | undefined;

  tell(error: DmaError): void {
    if (this.#listener === undefined) this.#error = error;
    else this.#listener(error);
  }

  listen(listener: (error: DmaError) => void): void {
    this.#listener = listener;
    if (this.#error !== undefined) listener(this.#error);
  }
}

function readArgs(
  args: ReadonlyMap<string, string>,
): Pick<ClientOptions, 'timeoutMs' | 'handshakeTimeoutMs' | 'mmap' | 'share' | 'stores' | 'user'> {
  const timeout = args.get('timeout');
  const user = args.get('user');
  if (timeout !== undefined && !(Number(timeout) > 0 && Number(timeout) < 2 ** 31))
    throw invalid('open', `timeout=${timeout} is not valid`, {
      hint: 'a timeout is a number of milliseconds, above 0 and below 2^31',
    });
  if (user !== undefined && !/^\d{1,10}$/.test(user))
    throw invalid('open', `user=${user} is not valid`, {
      hint: 'give the number of a user, as "id -u NAME" prints it',
    });
  const timeoutMs = timeout === undefined ? undefined : Number(timeout);
  return {
    timeoutMs,
    handshakeTimeoutMs: timeoutMs,
    mmap: choiceOf(args, 'mmap', MMAP_CHOICES),
    share: choiceOf(args, 'share', SHARE_CHOICES),
    stores: choiceOf(args, 'stores', STORES_CHOICES),
    user: user === undefined ? undefined : Number(user),
  };
}

/** @throws DmaError EINVAL for a value that is not one of these */
function choiceOf<T extends string>(
  args: ReadonlyMap<string, string>,
  key: string,
  choices: readonly T[],
): T | undefined {
  const value = args.get(key);
  const choice = choices.find((each) => each === value);
  if (value === undefined || choice !== undefined) return choice;
  throw invalid('open', `${key}=${value} is not valid`, {
    hint: `use ${choices.slice(0, -1).join(', ')} or ${choices.at(-1) ?? ''}`,
  });
}

/** Warns once about regions that are not mapped and therefore slow, and says what to do. */
function noteUnmapped(path: string, client: VfioUserClient): void {
  const refused = client.regions.flatMap(({ index }) => {
    const why = client.notMapped(index);
    return why === undefined ? [] : [`region ${index} (${why})`];
  });
  if (refused.length === 0) return;
  const warning =
    `vfio-user:${path}: not mapped: ${refused.join(', ')}. Every register access there is a message of about 100 us. mmap=trust ` +
    'in the name of the device maps it, but then a server that truncates its file kills this process';
  process.emitWarning(warning, { code: 'ANYDMA_NOT_MAPPED' });
}

/** Type 0 configuration header (PCI Local Bus Specification 3.0, 6.1). */
function idsOf(client: VfioUserClient): Required<IdMatch> {
  const header = new Uint8Array(0x30);
  client.regionRead(PCI_REGION.CONFIG, 0, header);
  const word = (offset: number): number => header[offset] + header[offset + 1] * 256;
  return {
    vendor: word(0x00),
    device: word(0x02),
    classCode: word(0x0a) * 256 + header[0x09],
    subsystemVendor: word(0x2c),
    subsystem: word(0x2e),
  };
}
