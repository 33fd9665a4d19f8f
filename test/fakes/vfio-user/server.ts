/** For tests: a server of vfio-user that does what a test wants. */
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import type { Platform } from '../../../src/platform/ports.js';
import { Channel, type ChannelOwner } from '../../../src/vfio-user/channel.js';
import { isCommand } from '../../../src/vfio-user/framing.js';
import {
  COMMAND,
  DEFAULT_CAPABILITIES,
  DMA_UNMAP_SIZE,
  FLAG,
  HEADER_SIZE,
  encodeDeviceInfo,
  encodeIrqInfo,
  encodeRegionInfo,
  encodeRegionReply,
  encodeVersion,
  decodeRegionAccess,
  get32,
  putErrorReply,
  putReply,
} from '../../../src/vfio-user/messages.js';
import type { Capabilities, Message, RegionDescription } from '../../../src/vfio-user/messages.js';

/** What a fake server answers: bytes, nothing at all, or (`undefined`) what a good one would. */
export type Script = (message: Message, server: FakeServer) => Uint8Array | 'nothing' | undefined;

/** A server on one end of a socketpair that does what a test wants. */
export class FakeServer {
  readonly channel: Channel;
  readonly seen: { command: number; flags: number; payload: Uint8Array; fds: number }[] = [];
  readonly replies: Message[] = [];
  capabilities: Capabilities = DEFAULT_CAPABILITIES;
  region: Partial<RegionDescription> = {};
  regionFd: number | undefined;
  readonly #out = new Uint8Array(2 ** 21);

  constructor(
    readonly platform: Platform,
    fd: number,
    readonly script: Script,
    served: boolean,
  ) {
    const owner: ChannelOwner = {
      onMessage: (message) => {
        if (!isCommand(message)) {
          this.replies.push({ ...message, payload: message.payload.slice() });
          return;
        }
        this.seen.push({
          command: message.command,
          flags: message.flags,
          payload: message.payload.slice(),
          fds: message.fds.length,
        });
        const answer = this.script(message, this);
        if (answer === 'nothing') return;
        if (answer === undefined) this.#answer(message);
        else this.channel.send(answer);
      },
      onClose: () => undefined,
    };
    this.channel = new Channel(platform, fd, owner, { served });
  }

  error(message: Message, code: ErrorCode): Uint8Array {
    return this.#out.slice(0, putErrorReply(this.#out, message.id, message.command, code));
  }

  ok(message: Message, payload: Uint8Array): Uint8Array {
    this.#out.set(payload, HEADER_SIZE);
    return this.#out.slice(0, putReply(this.#out, message.id, message.command, payload.length));
  }

  close(): void {
    this.channel.close(new DmaError({ code: 'ECONNABORTED', operation: 'test', reason: 'the test ends' }));
  }

  /** What a good server answers. */
  good(message: Message): Uint8Array {
    const { id, command, payload } = message;
    const out = this.#out;
    switch (command) {
      case COMMAND.VERSION:
        return this.ok(message, encodeVersion({ major: 0, minor: 1, capabilities: this.capabilities }));
      case COMMAND.GET_INFO: {
        const info = { resettable: true, pci: true, regionCount: 9, interruptKinds: 5 };
        return out.slice(0, encodeDeviceInfo(out, id, info));
      }
      case COMMAND.GET_REGION_INFO: {
        const index = get32(payload, 8);
        const region = {
          index,
          size: index === 0 ? 2 ** 22 : 0,
          readable: true,
          writable: true,
          mappable: false,
          fdOffset: 0,
          areas: [],
          argsz: 0,
          ...(index === 0 ? this.region : {}),
        };
        return out.slice(0, encodeRegionInfo(out, id, region, get32(payload, 0)));
      }
      case COMMAND.GET_IRQ_INFO: {
        const kind = { index: get32(payload, 8), count: 40, eventfd: true, maskable: false, automasked: false };
        return out.slice(0, encodeIrqInfo(out, id, kind));
      }
      case COMMAND.REGION_READ:
        out.fill(0x5a, 32, 32 + decodeRegionAccess(message).count);
        return out.slice(0, encodeRegionReply(out, message, decodeRegionAccess(message)));
      case COMMAND.REGION_WRITE:
        return out.slice(0, encodeRegionReply(out, message, decodeRegionAccess(message)));
      case COMMAND.DMA_UNMAP:
        return this.ok(message, payload.slice(0, DMA_UNMAP_SIZE));
      default:
        return out.slice(0, putReply(out, id, command, 0));
    }
  }

  #answer(message: Message): void {
    if ((message.flags & FLAG.NO_REPLY) !== 0) return;
    const isRegion = message.command === COMMAND.GET_REGION_INFO && get32(message.payload, 8) === 0;
    this.channel.send(this.good(message), isRegion && this.regionFd !== undefined ? [this.regionFd] : []);
  }
}

/**
 * Serves every client at `path` by a fake server of its own, in this thread, also while a call blocks it.
 *
 * @param prepare is given each before its client says anything
 * @returns ends it
 */
export function serveScripted(
  platform: Platform,
  path: string,
  script: Script,
  prepare: (server: FakeServer) => void = () => undefined,
): () => void {
  const listener = platform.sockets.listen(path, 8);
  const servers: FakeServer[] = [];
  const watch = platform.readiness.watch(listener, { readable: true }, () => {
    const fd = platform.sockets.accept(listener);
    if (fd === undefined) return;
    const server = new FakeServer(platform, fd, script, true);
    servers.push(server);
    prepare(server);
  });
  return () => {
    watch.close();
    for (const server of servers) server.close();
    platform.files.close(listener);
  };
}
