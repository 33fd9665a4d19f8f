#!/usr/bin/env node
/** The `anydma` command. */
import { STATUS } from './shared/command.js';
import { runProgram } from './program.js';

// Who reads the output may have seen enough: `anydma devices | head -1`.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    // Nobody can be told of the loss of standard error itself.
    if (stream === process.stdout)
      process.stderr.write(`anydma: standard output can not be written: ${error.message}\n`);
    process.exit(STATUS.FAILED);
  });

process.exitCode = await runProgram(process.argv.slice(2));
