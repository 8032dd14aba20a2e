//! Float reference inference: every value of an ONNX model, computed by `rten`, not by us.
//!
//! Invariant: each group of images is computed alone and by one thread, so a result depends neither
//! on the number of threads nor on the images that stand beside it. A group is one image, or
//! as many as the model's fixed batch asks for; a `Reshape` with a constant batch of 1, which many
//! exporters write, therefore does no harm.

mod names;
mod rewrite;

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use rten::{Dimension, ModelOptions, NodeId, RunOptions, ThreadPool, ValueOrView, ValueView};
use rten_tensor::Layout;

/// What can go wrong. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library refuses the model: damaged, an unknown operator, external data missing.
    #[error("the float reference cannot load the model: {0}")]
    Load(String),
    /// Only models with one input can be run.
    #[error("the float reference needs a model with 1 input, this one has {n_inputs}")]
    Inputs {
        /// Inputs that are not initializers.
        n_inputs: usize,
    },
    /// No such value in the model.
    #[error("the model has no value named {name:?}")]
    UnknownValue {
        /// As asked for.
        name: String,
    },
    /// The images are not what the model reads.
    #[error("input {name:?} is {got:?}, the model needs {needed}")]
    Shape {
        /// The model's input.
        name: String,
        /// Extents given, N × C × H × W.
        got: [usize; 4],
        /// Extents wanted, a symbol where any extent will do.
        needed: String,
    },
    /// Shape and data do not fit together.
    #[error("input {name:?} is {got:?}, but {n_elements} elements were given")]
    Elements {
        /// The model's input.
        name: String,
        /// Extents given, N × C × H × W.
        got: [usize; 4],
        /// Elements given.
        n_elements: usize,
    },
    /// The library failed while it computed.
    #[error("the float reference failed: {0}")]
    Run(String),
    /// A value that was asked for holds no floats.
    #[error("value {name:?} is {kind}, not a float tensor")]
    NotFloat {
        /// The value.
        name: String,
        /// Its type in the library's words.
        kind: String,
    },
    /// A value changes its shape from image to image.
    #[error("value {name:?} is {first:?} for the first image and {other:?} for another")]
    UnevenShape {
        /// The value.
        name: String,
        /// Its shape for the first group of images.
        first: Vec<usize>,
        /// Its shape for a later one.
        other: Vec<usize>,
    },
}

/// One value of the model for a whole batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents; the first is the number of images.
    pub shape: Vec<usize>,
    /// Row-major, the image being the slowest index.
    pub data: Vec<f32>,
}

/// A model ready to run.
pub struct Model {
    inner: rten::Model,
    input: NodeId,
    input_name: String,
    output_names: Vec<String>,
    /// Extents of the input where the file says them.
    input_dims: Option<Vec<Dimension>>,
    /// One pool of one thread per worker.
    pools: Vec<Arc<ThreadPool>>,
}

/// What one group of images yields: shape and data of each value asked for.
type Group = Vec<(Vec<usize>, Vec<f32>)>;

impl Model {
    /// Reads an ONNX file's bytes. `external_data` holds the contents of the files that the model's
    /// tensors name as their `location`, under exactly that name; empty for most models.
    ///
    /// The model runs on as many threads as the machine offers; see [`Model::with_threads`].
    ///
    /// # Errors
    /// [`Error::Load`] when the library cannot read the model, [`Error::Inputs`] when it has not
    /// exactly one input.
    pub fn load(
        bytes: Vec<u8>,
        external_data: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<Self, Error> {
        let (mut bytes, external_data) =
            rewrite::readable(bytes, external_data.into_iter().collect());
        // The library keeps the names of nodes and of values in one table, where ONNX has two.
        if !names::hide_clashing_node_names(&mut bytes) {
            // The library would take a file cut inside its graph for a shorter model.
            return Err(Error::Load("the file is cut short or damaged".to_owned()));
        }
        let mut options = ModelOptions::with_all_ops();
        // Optimisation fuses nodes and so removes the very values that we are asked for.
        options.enable_optimization(false).prepack_weights(true);
        for (location, contents) in external_data {
            options.external_data(&location, contents);
        }
        let inner = catch_unwind(AssertUnwindSafe(|| options.load(bytes)))
            .map_err(|_| Error::Load("the model is inconsistent".to_owned()))?
            .map_err(|error| Error::Load(one_line(&error)))?;
        let &[input] = inner.input_ids() else {
            let n_inputs = inner.input_ids().len();
            return Err(Error::Inputs { n_inputs });
        };
        let name_of = |id: &NodeId| {
            let info = inner.node_info(*id);
            info.and_then(|i| i.name().map(str::to_owned))
                .unwrap_or_default()
        };
        let output_names = inner.output_ids().iter().map(name_of).collect();
        let input_name = name_of(&input);
        let input_dims = inner.input_shape(0);
        let n_threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let model = Model {
            inner,
            input,
            input_name,
            output_names,
            input_dims,
            pools: vec![],
        };
        Ok(model.with_threads(n_threads))
    }

    /// Limits the number of images computed at the same time. The results do not change.
    #[must_use]
    pub fn with_threads(mut self, n_threads: NonZeroUsize) -> Self {
        let new_pool = |_| Arc::new(ThreadPool::with_num_threads(1));
        self.pools = (0..n_threads.get()).map(new_pool).collect();
        self
    }

    /// Name of the only input.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// Names of the outputs, in the file's order.
    pub fn output_names(&self) -> &[String] {
        &self.output_names
    }

    /// True when [`Model::run`] can be asked for this value.
    pub fn has_value(&self, name: &str) -> bool {
        self.inner.find_node(name).is_some()
    }

    /// Computes the named values (inputs, intermediate values, outputs) for `shape[0]` images,
    /// `batch` being N × C × H × W, row-major. The answer has one tensor for each name, in that
    /// order. A value without a batch axis of its own gets one in front.
    ///
    /// Everything asked for is held in memory at once: give large data sets in portions.
    ///
    /// # Errors
    /// Names the value or the input and what was expected of it, or tells what the library says.
    pub fn run(
        &self,
        batch: &[f32],
        shape: [usize; 4],
        value_names: &[&str],
    ) -> Result<Vec<Tensor>, Error> {
        let group_size = self.check_input(batch, shape)?;
        // The library computes each value once and refuses to be asked for it twice.
        let mut unique: Vec<&str> = value_names.to_vec();
        unique.sort_unstable();
        unique.dedup();
        let ids = self.value_ids(&unique)?;
        let n_groups = shape[0] / group_size;
        let mut group_shape = shape;
        group_shape[0] = group_size;
        let group_len = batch.len() / n_groups;
        let compute = |group_index: usize, pool: &Arc<ThreadPool>| {
            let start = group_index * group_len;
            self.run_group(
                &batch[start..start + group_len],
                group_shape,
                &ids,
                &unique,
                pool,
            )
        };

        let n_workers = self.pools.len().min(n_groups);
        let results: Vec<Result<Vec<Group>, Error>> = thread::scope(|scope| {
            // The result is an order of groups, whichever worker finishes first.
            let spawn = |worker: usize| {
                let (compute, pool) = (&compute, &self.pools[worker]);
                let first = n_groups * worker / n_workers;
                let end = n_groups * (worker + 1) / n_workers;
                scope.spawn(move || (first..end).map(|group| compute(group, pool)).collect())
            };
            let workers: Vec<_> = (0..n_workers).map(spawn).collect();
            let panicked = |_| {
                Err(Error::Run(
                    "an operator does not accept its input".to_owned(),
                ))
            };
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(panicked))
                .collect()
        });
        let mut groups = Vec::with_capacity(n_groups);
        for result in results {
            groups.extend(result?);
        }
        let tensors = join_groups(groups, group_size, &unique)?;
        if unique == value_names {
            return Ok(tensors);
        }
        let place = |name: &&str| unique.partition_point(|other| other < name);
        Ok(value_names
            .iter()
            .map(|name| tensors[place(name)].clone())
            .collect())
    }

    /// Number of images that the model takes at once.
    fn check_input(&self, batch: &[f32], shape: [usize; 4]) -> Result<usize, Error> {
        let name = self.input_name.clone();
        let n_elements = shape
            .iter()
            .try_fold(1usize, |n, &extent| n.checked_mul(extent));
        if n_elements != Some(batch.len()) {
            return Err(Error::Elements {
                name,
                got: shape,
                n_elements: batch.len(),
            });
        }
        let Some(dims) = &self.input_dims else {
            return if batch.is_empty() {
                let needed = "at least one element".to_owned();
                Err(Error::Shape {
                    name,
                    got: shape,
                    needed,
                })
            } else {
                Ok(1)
            };
        };
        // Exporters write 0 or 1 for a batch of any size as well as for one that is fixed.
        let group_size = match dims.first() {
            Some(Dimension::Fixed(n)) => (*n).max(1),
            _ => 1,
        };
        let fits = |(dim, extent): (&Dimension, &usize)| match dim {
            Dimension::Fixed(n) => n == extent,
            Dimension::Symbolic(_) => *extent > 0,
        };
        let images_fit = shape[0] > 0 && shape[0].is_multiple_of(group_size);
        let mut rest = dims.iter().zip(&shape).skip(1);
        if dims.len() == 4 && images_fit && !batch.is_empty() && rest.all(fits) {
            return Ok(group_size);
        }
        let mut needed: Vec<String> = dims.iter().map(extent_text).collect();
        if let (Some(first), true) = (needed.first_mut(), group_size > 1) {
            *first = format!("a multiple of {group_size}");
        } else if let Some(first) = needed.first_mut() {
            "N".clone_into(first);
        }
        Err(Error::Shape {
            name,
            got: shape,
            needed: format!("[{}]", needed.join(", ")),
        })
    }

    fn value_ids(&self, value_names: &[&str]) -> Result<Vec<NodeId>, Error> {
        let find = |name: &&str| {
            let unknown = || Error::UnknownValue {
                name: (*name).to_owned(),
            };
            self.inner.find_node(name).ok_or_else(unknown)
        };
        value_names.iter().map(find).collect()
    }

    fn run_group(
        &self,
        images: &[f32],
        shape: [usize; 4],
        ids: &[NodeId],
        value_names: &[&str],
        pool: &Arc<ThreadPool>,
    ) -> Result<Group, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Run(one_line(error));
        let view = ValueView::from_shape(&shape, images).map_err(|error| failed(&error))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(pool)));
        let inputs = vec![(self.input, ValueOrView::View(view))];
        let values = self
            .inner
            .run(inputs, ids, Some(options))
            .map_err(|error| failed(&error))?;
        let unpack = |(value, name): (rten::Value, &&str)| match value {
            rten::Value::FloatTensor(tensor) => Ok((tensor.shape().to_vec(), tensor.into_data())),
            other => {
                let kind = other.dtype().to_string();
                Err(Error::NotFloat {
                    name: (*name).to_owned(),
                    kind,
                })
            }
        };
        values.into_iter().zip(value_names).map(unpack).collect()
    }
}

/// Puts the groups' values behind each other.
fn join_groups(
    groups: Vec<Group>,
    group_size: usize,
    value_names: &[&str],
) -> Result<Vec<Tensor>, Error> {
    let n_groups = groups.len();
    let mut groups = groups.into_iter();
    let Some(first) = groups.next() else {
        return Ok(vec![]);
    };
    let mut joined = first;
    for (_, data) in &mut joined {
        data.reserve_exact(data.len().saturating_mul(n_groups - 1));
    }
    for group in groups {
        for (i, ((shape, data), (other, more))) in joined.iter_mut().zip(group).enumerate() {
            if *shape != other {
                let (name, first) = (value_names[i].to_owned(), shape.clone());
                return Err(Error::UnevenShape { name, first, other });
            }
            data.extend_from_slice(&more);
        }
    }
    let as_tensor = |(mut shape, data): (Vec<usize>, Vec<f32>)| {
        if shape.first() == Some(&group_size) {
            shape[0] = n_groups * group_size;
        } else {
            shape.insert(0, n_groups);
        }
        Tensor { shape, data }
    };
    Ok(joined.into_iter().map(as_tensor).collect())
}

fn extent_text(dim: &Dimension) -> String {
    match dim {
        Dimension::Fixed(n) => n.to_string(),
        Dimension::Symbolic(name) => name.clone(),
    }
}

/// The library's messages may quote the model, and so contain anything.
fn one_line(error: &dyn std::fmt::Display) -> String {
    let text: String = error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(400).collect();
    if short.ends_with('.') {
        short.pop();
    }
    short
}
