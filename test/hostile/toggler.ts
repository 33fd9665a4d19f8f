/** A thread that changes the size of the file in its first cell between 4096 and 0, and counts its rounds in the second. */
import { ftruncateSync } from 'node:fs';
import { workerData } from 'node:worker_threads';

const cell = workerData as Int32Array;
for (;;) {
  const fd = Atomics.load(cell, 0);
  Atomics.add(cell, 1, 1);
  if (fd < 0) {
    Atomics.wait(cell, 0, fd, 1);
    continue;
  }
  try {
    ftruncateSync(fd, 4096);
    ftruncateSync(fd, 0);
  } catch {
    // It is sealed by now.
  }
}
