/** The `anydma` command as a function: it takes arguments, writes to two streams, and returns the exit status. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { attach } from './attach.js';
import { bind } from './devices/bind.js';
import { addCommand, STATUS, type Run } from './shared/command.js';
import { completion } from './completion/completion.js';
import { demo } from './demo/demo.js';
import { devices } from './devices/devices.js';
import { explain } from './explain.js';
import { forward } from './forward/forward.js';
import { hugepages } from './hugepages.js';
import { map } from './map.js';
import type { Streams } from './shared/output.js';
import { addNvme } from './nvme/nvme.js';
import { addRdma } from './rdma/rdma.js';
import { serve } from './serve.js';
import { unbind } from './devices/unbind.js';

const { version } = createRequire(import.meta.url)('anydma/package.json') as { version: string };

/**
 * Runs one command. Meanwhile, signals to this process interrupt it.
 *
 * @param args the arguments after the program's name
 * @returns the exit status
 */
export async function runProgram(args: readonly string[], streams: Streams = process): Promise<number> {
  const run: Run = { streams, status: STATUS.OK };
  const program = new Command('anydma')
    .description('Map any memory for DMA on any device.')
    .version(version)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void streams.stdout.write(text),
      writeErr: (text) => void streams.stderr.write(text),
    })
    .showHelpAfterError('"anydma --help" lists the commands.')
    .addHelpText(
      'after',
      `
Devices are named bus:name[,key=value...]: pci:0000:00:02.0, vfio-user:/run/device.sock, vdev:copy0, rdma:rxe0.
Exit status: 0 done; 1 failed, with the reason and a hint on standard error; 2 wrong usage.

Start with: anydma demo`,
    );

  addCommand(program, demo, run);
  addCommand(program, map, run);
  addCommand(program, devices, run);
  addCommand(program, bind, run);
  addCommand(program, unbind, run);
  addCommand(program, hugepages, run);
  addCommand(program, serve, run);
  addCommand(program, attach, run);
  addNvme(program, run);
  addCommand(program, forward, run);
  addRdma(program, run);
  addCommand(program, explain, run);
  addCommand(program, completion(program), run);

  try {
    await program.parseAsync(args, { from: 'user' });
    return run.status;
  } catch (error) {
    // Commander has printed the error.
    if (!(error instanceof CommanderError)) throw error;
    return error.exitCode === 0 ? STATUS.OK : STATUS.USAGE;
  }
}
