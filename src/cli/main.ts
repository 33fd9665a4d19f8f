#!/usr/bin/env node
/** The `anydma` command. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { bind } from './bind.js';
import { addCommand, STATUS } from './command.js';
import { demo } from './demo.js';
import { devices } from './devices.js';
import { explain } from './explain.js';
import { hugepages } from './hugepages.js';
import { map } from './map.js';
import { addRdma } from './rdma.js';
import { serve } from './serve.js';
import { unbind } from './unbind.js';

const { version } = createRequire(import.meta.url)('anydma/package.json') as { version: string };

// Who reads the output may have seen enough: `anydma devices | head -1`.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    // Nobody can be told of the loss of standard error itself.
    if (stream === process.stdout)
      process.stderr.write(`anydma: standard output can not be written: ${error.message}\n`);
    process.exit(STATUS.FAILED);
  });

const program = new Command('anydma')
  .description('Map any memory for DMA on any device.')
  .version(version)
  .exitOverride()
  .showHelpAfterError('"anydma --help" lists the commands.')
  .addHelpText(
    'after',
    `
Devices are named bus:name[,key=value...]: pci:0000:00:02.0, vfio-user:/run/device.sock, vdev:copy0, rdma:rxe0.
Exit status: 0 done; 1 failed, with the reason and a hint on standard error; 2 wrong usage.

Start with: anydma demo`,
  );

addCommand(program, demo);
addCommand(program, map);
addCommand(program, devices);
addCommand(program, bind);
addCommand(program, unbind);
addCommand(program, hugepages);
addCommand(program, serve);
addRdma(program);
addCommand(program, explain);

try {
  await program.parseAsync();
} catch (error) {
  // Commander has told the user what is wrong.
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? STATUS.OK : STATUS.USAGE;
}
