/** `anydma serve`: serves an emulated device to any vfio-user client. */
import { Argument } from 'commander';
import { absolutePath } from '../check.js';
import { DmaError } from '../index.js';
import { serve as serveDevice } from '../entry/model.js';
import { openPlatform } from '../platform/open.js';
import { DEVICE_NAMES, deviceModel, isDeviceName } from '../vfio-user/devices/catalog.js';
import type { ModelFactory } from '../vfio-user/devices/model.js';
import type { ServerEvent } from '../vfio-user/server.js';
import { addNvmeOptions, givenNvmeOptions, nvmeModelOptions, type ServeNvmeOptions } from './serve-nvme.js';
import { paragraphs, type CommandSpec, type CommandContext } from './shared/command.js';
import { integerValue } from './shared/values.js';

interface ServeOptions extends ServeNvmeOptions {
  readonly socket: string;
  readonly dmaMask?: number;
  readonly maxDmaMaps?: number;
  readonly once?: boolean;
  readonly untrusted?: boolean;
}

export const serve: CommandSpec<ServeOptions> = {
  name: 'serve',
  summary: 'serve an embedded device over vfio-user, to any client',
  description: paragraphs(
    `Serves an emulated device on a UNIX socket, to one client at a time, until it is interrupted. Clients are programs that use
    anydma, QEMU, and all others that speak vfio-user.`,
    `When the server is ready, it prints one line on standard output (with --json, a document). It reports clients on standard
    error. It removes the socket at the end.`,
  ),
  options: (command) =>
    addNvmeOptions(
      command.addArgument(
        new Argument(
          '<device>',
          'copy: copies memory, by descriptor rings; edu: the teaching device of QEMU, with interrupts and DMA through 4 KiB; ' +
            'nvme: a disk, whose content is in files',
        ).choices(DEVICE_NAMES),
      ),
    )
      .requiredOption('--socket <path>', 'path of the socket')
      .option('--dma-mask <bits>', 'edu: number of IOVA bits that the device uses (default: 28)', integerValue(1, 53))
      .option('--max-dma-maps <n>', 'most mappings that a client can have at a time', integerValue(1, 65535))
      .option('--untrusted', 'do not map memory that a client could take away, not even of clients of this user')
      .option('--once', 'end when the first client leaves'),
  examples: [
    [
      'anydma serve copy --socket /tmp/copy.sock',
      'then, in another terminal: anydma demo --device vfio-user:/tmp/copy.sock',
    ],
    [
      'anydma serve edu --socket /tmp/edu.sock --dma-mask 40 --once',
      'an edu device with 40 address bits, for one client',
    ],
    [
      'anydma serve nvme --socket /tmp/disk.sock --file disk.img --size 1GiB',
      'an NVMe disk, for a program or a virtual machine; the file is made if it is not there',
    ],
  ],
  async run(options, context) {
    const { output, signal, args } = context;
    const [device] = args;
    if (options.socket === '') context.usage('--socket needs the path of a socket to be made');
    const socketPath = absolutePath(options.socket, 'serve');
    const platform = openPlatform();
    if (platform.limitation !== undefined)
      throw new DmaError({ code: 'ENOTSUP', operation: 'serve', reason: platform.limitation });
    const server = serveDevice(platform, {
      socketPath,
      model: modelOf(device, options, context),
      maxDmaMaps: options.maxDmaMaps,
      once: options.once,
      untrusted: options.untrusted,
      onEvent: (event) => output.note(describe(event)),
    });
    const end = (): void => void server.close();
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    output.text(`${device} is at ${socketPath}, served by process ${process.pid} until it is interrupted (Ctrl-C)`);
    output.line({ ready: true, socket: socketPath, device, pid: process.pid });
    await server.closed;
  },
};

function modelOf(device: string, options: ServeOptions, { usage }: CommandContext): ModelFactory {
  const { dmaMask } = options;
  if (!isDeviceName(device)) return usage(`there is no device ${device}`);
  if (dmaMask !== undefined && device !== 'edu') return usage(`--dma-mask is for edu; ${device} uses all address bits`);
  const [ofNvme] = givenNvmeOptions(options);
  if (ofNvme !== undefined && device !== 'nvme') return usage(`${ofNvme} is for nvme, not for ${device}`);
  if (device === 'nvme') return deviceModel(device, nvmeModelOptions(options));
  return device === 'edu' && dmaMask !== undefined
    ? deviceModel(device, { dmaMaskBits: dmaMask })
    : deviceModel(device);
}

function describe(event: ServerEvent): string {
  switch (event.kind) {
    case 'connected':
      return 'a client has connected';
    case 'refused':
      return 'another client was refused: the server accepts one at a time';
    case 'disconnected':
      return `the client is gone (${event.error.reason}); all its resources are released`;
    case 'rejected':
      return `a command without a reply was refused (only the first is reported): ${event.error.message}`;
    case 'failed':
      return `failed: ${event.error.message}`;
  }
}
