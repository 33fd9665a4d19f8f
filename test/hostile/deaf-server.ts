/**
 * A server of vfio-user, in a process of its own, that takes memory and never says that it gave it back: it does not answer
 * DMA_UNMAP, and writes to all that it was given whenever its parent sends a message; `leave` makes it close the connection.
 */
import { DmaError } from '../../src/errors.js';
import { Channel } from '../../src/vfio-user/channel.js';
import { openPlatform } from '../../src/platform/open.js';
import * as m from '../../src/vfio-user/messages.js';
import type { Va } from '../../src/units.js';

const [, , socketPath = ''] = process.argv;
const platform = openPlatform();
const { sockets, files, memory, readiness } = platform;
const out = new Uint8Array(m.MAX_MESSAGE);
const given: { readonly va: Va; readonly length: number }[] = [];
let channel: Channel | undefined;
const listener = sockets.listen(socketPath, 1);
readiness.watch(listener, { readable: true }, () => {
  const fd = sockets.accept(listener);
  if (fd === undefined) return;
  channel = new Channel(platform, fd, {
    onMessage(message) {
      const size = answer(message);
      if (size !== undefined) channel?.send(out.subarray(0, size));
    },
    onClose: () => undefined,
  });
});
process.on('message', (what) => {
  if (what === 'leave') {
    channel?.close(new DmaError({ code: 'ECONNABORTED', operation: 'test', reason: 'it leaves' }));
    return;
  }
  for (const { va, length } of given) memory.copyTo(va, new Uint8Array(length).fill(0xaa));
  process.send?.('written');
});
process.send?.('ready');

function answer(message: m.Message): number | undefined {
  const { id, command, payload } = message;
  switch (command) {
    case m.COMMAND.VERSION: {
      const version = m.encodeVersion({ ...m.PROTOCOL_VERSION, capabilities: m.DEFAULT_CAPABILITIES });
      out.set(version, m.HEADER_SIZE);
      return m.putReply(out, id, command, version.length);
    }
    case m.COMMAND.GET_INFO:
      return m.encodeDeviceInfo(out, id, { resettable: false, pci: false, regionCount: 0, interruptKinds: 0 });
    case m.COMMAND.DMA_MAP: {
      const { offset, length } = m.decodeDmaMap(message);
      const fd = message.fds.shift();
      if (fd === undefined) return m.putReply(out, id, command, 0);
      // The whole file, as every server can.
      const { size } = files.status(fd);
      given.push({ va: memory.map({ fd, length: Math.max(size, offset + length) }), length: size });
      files.close(fd);
      return m.putReply(out, id, command, 0);
    }
    case m.COMMAND.DMA_UNMAP:
      return undefined;
    default:
      return m.putErrorReply(out, id, command, payload.length > 0 ? 'EINVAL' : 'ENOTSUP');
  }
}
