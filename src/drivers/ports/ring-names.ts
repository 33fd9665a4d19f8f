/** The names of the rings of `vdev:ring0`, by which another program finds them. */

/** The rings of a queue: what the program that has the device sends, and what it receives. */
export function ringNames(port: string, queue: number): { readonly out: string; readonly in: string } {
  return { out: `${port}.${queue}.out`, in: `${port}.${queue}.in` };
}
