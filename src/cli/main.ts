#!/usr/bin/env node
/** The `anydma` command. */
import { STATUS } from './shared/command.js';
import { runProgram } from './program.js';

// The reader of the output may stop early: `anydma devices | head -1`.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    // If standard error is closed, there is no place to report it.
    if (stream === process.stdout)
      process.stderr.write(`anydma: standard output can not be written: ${error.message}\n`);
    process.exit(STATUS.FAILED);
  });

process.exitCode = await runProgram(process.argv.slice(2));
