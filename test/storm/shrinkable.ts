/** A file that can be made shorter while others have it mapped, because it has no seals. */
import { ftruncateSync, openSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

let made = 0;

/** Its descriptor, which is the caller's to close; the file has no name any more. @param length bytes */
export function shrinkable(length: number): number {
  const path = join(tmpdir(), `shrinkable-${process.pid}-${made++}`);
  const fd = openSync(path, 'wx+');
  unlinkSync(path);
  ftruncateSync(fd, length);
  return fd;
}
