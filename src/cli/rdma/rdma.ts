/** `anydma rdma`: moves data between the memories of two processes or hosts by RDMA. */
import { Option, type Command } from 'commander';
import { formatSize, GiB, KiB, MiB } from '../../index.js';
import { openPlatform } from '../../platform/open.js';
import { addCommand, paragraphs, type CommandSpec, type Run } from '../shared/command.js';
import { MODES_TEXT, modesOf } from '../demo/modes.js';
import { rdmaDeviceOption } from './device.js';
import { moveRdma, type RdmaMoveOptions } from './move.js';
import { DEFAULT_PORT, MOST, type Verb } from './protocol.js';
import { serveRdma, type RdmaServeOptions } from './serve.js';
import { integerValue, placeValue, sizeValue } from '../shared/values.js';

/** Adds the RDMA commands to the program, as one group. */
export function addRdma(program: Command, run: Run): void {
  const group = program
    .command('rdma')
    .summary('move data between registered memories of two processes or hosts: serve, write, read, send')
    .description(
      paragraphs(
        `Moves data between memory of this process and memory of another one, here or on another host, by RDMA: the devices do
        it by themselves, on memory that is registered with them. "serve" has the memory; "write" and "read" go to it without
        the other process doing anything, and "send" fills receives that it has posted. Each checks that what arrived is what
        was meant, and tells how fast it was.`,
        `Any device of libibverbs will do: mlx5, mlx4, irdma, or Soft-RoCE, which the kernel makes of any network interface:
        "rdma link add rxe0 type rxe netdev NAME". "anydma devices" lists what there is.`,
      ),
    )
    .showHelpAfterError('"anydma rdma --help" lists its commands.');
  addCommand(group, rdmaServe, run);
  addCommand(group, moveSpec('write'), run);
  addCommand(group, moveSpec('read'), run);
  addCommand(group, moveSpec('send'), run);
}

function gidOption(): Option {
  return new Option(
    '--gid-index <n>',
    "which of the port's addresses to use; default: RoCE version 2, by IPv4 if there is one",
  ).argParser(integerValue(0, 65535));
}

function oneModeOption(): Option {
  return new Option('--mode <mode>', 'how to have the memory').choices(modesOf('all')).default('external');
}

const rdmaServe: CommandSpec<RdmaServeOptions> = {
  name: 'serve',
  summary: 'have memory that "anydma rdma write", "read" and "send" go to',
  description: paragraphs(
    `Serves clients until it is interrupted, several at a time. Each has memory of its own, of the size that it asks for, with
    the one right that it needs: to write or to read by RDMA, or none for messages. When a client leaves, its queue pair goes
    first, then its memory.`,
    `When clients can come, one line says so on standard output (with --json it is a document); what they do is told on
    standard error. They find the server by TCP, on which queue pairs and keys are exchanged; the data goes by RDMA.`,
    `Who can reach the port can have memory here, up to --memory in all, and use no other memory of this process. Clients are
    not kept from each other's: their regions are in one protection domain. Serve on networks whose hosts you trust.`,
    MODES_TEXT,
  ),
  options: (command) =>
    command
      .addOption(rdmaDeviceOption())
      .addOption(gidOption())
      .addOption(oneModeOption())
      .option('--host <address>', 'listen at this address only; default: all of this host')
      .option('--port <n>', 'the TCP port; 0 takes any that is free', integerValue(0, 65535), DEFAULT_PORT)
      .addOption(
        new Option('--memory <size>', 'memory that all clients together may have')
          .argParser(sizeValue)
          .default(GiB, formatSize(GiB)),
      ),
  examples: [
    ['anydma rdma serve', 'then, on another host: anydma rdma write --to THIS-HOST'],
    [
      'anydma rdma serve --device rdma:mlx5_0 --memory 16GiB --mode heap',
      'on a device of your choice, with memory of heaps',
    ],
  ],
  run: (options, context) => serveRdma(options, context, openPlatform()),
};

const SUMMARIES: Readonly<Record<Verb, string>> = {
  write: 'write memory of this process to memory of "anydma rdma serve"',
  read: 'read memory of "anydma rdma serve" to memory of this process',
  send: 'send memory of this process to "anydma rdma serve", as messages',
};

const DESCRIPTIONS: Readonly<Record<Verb, string>> = {
  write: `Fills memory with data, writes it to the server's memory, which the server does not notice, and has the server check
    it.`,
  read: `Has the server fill its memory with data, reads that, which the server does not notice, and checks it.`,
  send: `Fills memory with data and sends it in messages of --block bytes, for each of which the server has posted a receive. Then
    the server checks what has come.`,
};

function moveSpec(verb: Verb): CommandSpec<RdmaMoveOptions> {
  return {
    name: verb,
    summary: SUMMARIES[verb],
    description: paragraphs(
      DESCRIPTIONS[verb],
      `GB/s is of all iterations together, with --depth requests under way. Of blocks up to 64 KiB the latency is measured too:
      from posting a single request to its completion, which comes when the other side has acknowledged it.`,
      ...(verb === 'send'
        ? []
        : [
            `With --after-unmap the server unmaps its memory at the end, and it is tried once more with the key that was good
            before: the server's device refuses it, and the server explains what used to be there.`,
          ]),
      MODES_TEXT,
    ),
    options: (command) => {
      command
        .addOption(
          new Option(
            '--to <host>',
            `where "anydma rdma serve" is: HOST or HOST:PORT; the port is ${DEFAULT_PORT} otherwise`,
          )
            .argParser(placeValue(DEFAULT_PORT))
            .makeOptionMandatory(),
        )
        .addOption(rdmaDeviceOption())
        .addOption(gidOption())
        .addOption(oneModeOption())
        .addOption(sizeOption('--size <size>', 'how much memory, on both sides', 64 * MiB))
        .addOption(sizeOption('--block <size>', 'bytes of a request', 64 * KiB))
        .option('--depth <n>', 'how many requests may be under way', integerValue(1, MOST.depth), 64)
        .option('--iterations <n>', 'how often to move all of it', integerValue(1, 1_000_000), 1);
      return verb === 'send'
        ? command
        : command.option('--after-unmap', 'try again when the server has unmapped it: shows how that is refused');
    },
    examples: [
      [`anydma rdma ${verb} --to 192.0.2.1`, '64 MiB, 64 KiB at a time'],
      [
        `anydma rdma ${verb} --to 192.0.2.1 --size 1GiB --block 1MiB --depth 16 --mode owned`,
        "memory of the library's own",
      ],
      [`anydma rdma ${verb} --to 192.0.2.1 --size 64k --block 64 --json | jq .latency`, 'how long small requests take'],
      ...(verb === 'send'
        ? []
        : [[`anydma rdma ${verb} --to 192.0.2.1 --after-unmap`, 'what becomes of an access after the unmap'] as const]),
    ],
    run: (options, context) => moveRdma(verb, options, context, openPlatform()),
  };
}

function sizeOption(flags: string, description: string, bytes: number): Option {
  return new Option(flags, description).argParser(sizeValue).default(bytes, formatSize(bytes));
}
